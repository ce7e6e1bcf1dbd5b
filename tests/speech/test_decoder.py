"""The decoder's pass against transformers' own, the next token against Whisper's rule, eight bits on a processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from backends.messages import LoadModel
from backends.registry import recognised
from backends.speech import rules
from backends.speech.kind import Segments, SpeechPlan
from backends.speech.tokens import Tokens
from tests.speech.sound import SENTENCES, Samples, wav
from tests.speech.test_ctc import heard

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.engine

SIZES = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 3, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 90, "max_target_positions": 20, "num_mel_bins": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3, "begin_suppress_tokens": None,
}  # fmt: skip
NEVER = float("-inf")


@pytest.fixture(scope="module")
def model() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(3)
    made = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**SIZES)).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.normal_(std=0.3)
    return made


@pytest.fixture(scope="module")
def hidden() -> Any:
    torch.manual_seed(4)
    return torch.randn(3, 12, 32)


def theirs(model: Any, ids: list[int], hidden: Any) -> Any:
    """`(t, width)` states of one row, computed alone and at once."""
    with torch.inference_mode():
        return model.model.decoder(input_ids=torch.tensor([ids]), encoder_hidden_states=hidden).last_hidden_state[0]


def test_tokens_one_by_one_are_those_of_transformers(model: Any, hidden: Any) -> None:
    """Given rows that begin with 4, 2 and 1 tokens, when each goes on for 8, then all states are the row's alone."""
    from backends.speech.decoder import Decoder

    rows = [[3, 9, 14, 80], [3, 41], [7]]
    later = [[10 + 3 * n + row for n in range(8)] for row in range(3)]
    decoder = Decoder(model)
    sound = decoder.sound(hidden)
    cells = decoder.cells([4 - len(row) for row in rows], 12)
    begun = decoder.forward(torch.tensor([[0] * (4 - len(row)) + row for row in rows]), cells, sound)
    states = [begun, *(decoder.forward(torch.tensor([[row[n]] for row in later]), cells, sound) for n in range(8))]
    ours = torch.cat(states, dim=1)
    for place, row in enumerate(rows):
        wanted = theirs(model, row + later[place], hidden[place : place + 1])
        torch.testing.assert_close(ours[place, 4 - len(row) :], wanted, atol=1e-4, rtol=1e-4)


def test_some_windows_are_looked_at_again(model: Any, hidden: Any) -> None:
    from backends.speech.decoder import Decoder

    decoder = Decoder(model)
    sound = decoder.sound(hidden)
    assert sound.only([0, 1, 2]) is sound
    again = decoder.forward(torch.tensor([[3, 5], [3, 5]]), decoder.cells([0, 0], 2), sound.only([2, 0]))
    for place, row in enumerate((2, 0)):
        torch.testing.assert_close(again[place], theirs(model, [3, 5], hidden[row : row + 1]), atol=1e-4, rtol=1e-4)


TOKENS = Tokens(
    tokenizer=cast("Any", None),
    end=50,
    start=51,
    previous=None,
    no_speech=55,
    first_time=60,
    tasks={},
    languages={},
    n_vocab=200,
)


def by_the_rule(logits: Any, ids: list[int], suppressed: list[int]) -> tuple[int, float]:
    """As OpenAI's decoding.py says it, a step after the other."""
    logits = logits.clone()
    logits[suppressed] = NEVER
    for begin, end in rules.allowed(ids, TOKENS).banned:
        logits[begin:end] = NEVER
    logprobs = torch.log_softmax(logits, dim=-1)
    if logprobs[60:].logsumexp(dim=-1) > logprobs[:60].max():
        logits[:60] = NEVER
    logprobs = torch.log_softmax(logits, dim=-1)
    best = int(logprobs.argmax())
    return best, float(logprobs[best])


@pytest.mark.parametrize("ids", [[], [65], [65, 4], [65, 4, 70], [65, 4, 70, 70]])
def test_the_next_token_is_the_rule_s(ids: list[int]) -> None:
    """Given logits of which some want a time and some a word, then each row's token is that of a row alone."""
    from backends.speech.choice import Chooser

    torch.manual_seed(len(ids))
    logits = torch.randn(40, 200) * 2
    logits[::2, :60] += 4
    wanted = [by_the_rule(row, ids, [7, *([8] if not ids else [])]) for row in logits]
    chooser = Chooser(TOKENS, [7], [8], device=torch.device("cpu"))
    chosen, logprobs = chooser.choose(logits, [ids] * 40, [0.0] * 40)
    assert chosen == [one for one, _ in wanted]
    assert logprobs == pytest.approx([one for _, one in wanted], abs=1e-4)
    if not ids or len(ids) == 2:
        assert len({one >= 60 for one in chosen}) == (1 if not ids else 2)


def test_a_temperature_picks_others_of_its_row_alone() -> None:
    from backends.speech.choice import Chooser

    torch.manual_seed(1)
    chooser = Chooser(TOKENS, [], [], device=torch.device("cpu"))
    logits = torch.zeros(2, 200)
    logits[:, 10] = 6.0
    seen = [chooser.choose(logits.clone(), [[65, 4]] * 2, [0.0, 9.0])[0] for _ in range(20)]
    assert {first for first, _ in seen} == {10}
    assert len({second for _, second in seen}) > 5


def test_eight_bits_take_what_was_estimated_and_hear_as_well(whisper: Path, said: Samples, tmp_path: Path) -> None:
    """Given tiny.en in 8 bits, then its bytes are what the headers said, its head included, and the text is right."""
    from backends.pytorch.linear import IntegerLinear
    from backends.speech.loading import load

    found = recognised(whisper)
    assert found is not None
    options: dict[str, bool | int | float | str] = {"quantization": "bnb-8bit"}
    plan = SpeechPlan(device="cpu", parallel=1)
    estimated = found[0].estimate(found[0].describe(whisper, options), plan).host.weights
    engine: Any = load(LoadModel("m", "speech", str(whisper), plan, threads=1, options=options), lambda _: None)
    assert engine.ready().parts["weights"] == pytest.approx(estimated, rel=0.02)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        assert isinstance(engine._listener._recogniser.model.proj_out, IntegerLinear)
    path = tmp_path / "a.wav"
    path.write_bytes(wav(said))
    events = heard(engine, path, language="en")
    text = "".join(one.text for event in events if isinstance(event, Segments) for one in event.segments)
    assert text.strip() == " ".join(SENTENCES)
