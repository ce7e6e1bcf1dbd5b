"""SeamlessM4T-v2 folders: the text transformers itself writes, in the language that is asked for, and what is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.backend import HeaderError
from backends.engine import JobError
from backends.messages import LoadModel
from backends.registry import recognised
from backends.speech.kind import Heard, Pauses, Segments, SpeechPlan
from backends.speech.seamless_header import SeamlessHeader
from backends.speech.windows import Windows
from tests.speech.sound import Samples, wav
from tests.speech.test_ctc import heard

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.engine

WORDS = ["<pad>", "<unk>", "<s>", "</s>", "__eng__", "__deu__", *(f"w{n}" for n in range(58))]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS), "hidden_size": 32, "decoder_layers": 2, "decoder_attention_heads": 2,
    "decoder_ffn_dim": 48, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "speech_encoder_layers": 2, "speech_encoder_attention_heads": 2, "speech_encoder_intermediate_size": 48,
    "max_new_tokens": 40, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the speech-to-text side, with the tensors of another side beside them."""
    from safetensors.torch import load_file, save_file
    from tokenizers import Tokenizer, decoders, models

    made = tmp_path_factory.mktemp("seamless") / "m4t"
    torch.manual_seed(5)
    model = transformers.SeamlessM4Tv2ForSpeechToText(transformers.SeamlessM4Tv2Config(**SIZES)).eval()
    with torch.no_grad():
        for value in model.text_decoder.parameters():
            value.mul_(6)
    model.save_pretrained(made)
    tensors = load_file(made / "model.safetensors")
    save_file({**tensors, "t2u_model.lm_head.weight": torch.zeros(999, 32)}, made / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(WORDS[:6])
    tokenizer.save(str(made / "tokenizer.json"))
    told = json.loads((made / "generation_config.json").read_text())
    languages = {"eng": 4, "deu": 5}
    (made / "generation_config.json").write_text(json.dumps({**told, "text_decoder_lang_to_code_id": languages}))
    return made


@pytest.fixture(scope="module")
def speech(said: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("seamless") / "a.wav"
    path.write_bytes(wav(said))
    return path


def loaded(folder: Path, **options: Any) -> Any:
    from backends.speech.loading import load

    plan = SpeechPlan(device="cpu", parallel=2)
    return load(LoadModel("a", "speech", str(folder), plan, threads=1, options=options), lambda _: None)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Any:
    return loaded(folder)


def theirs(folder: Path, speech: Path, language: str) -> list[list[int]]:
    """What transformers' own `generate` writes for each window, behind the opening and before the end."""
    from backends.speech.audio import Recording

    model = transformers.SeamlessM4Tv2ForSpeechToText.from_pretrained(folder).eval()
    extractor = transformers.SeamlessM4TFeatureExtractor()
    recording = Recording(str(speech), n_bytes=10**7, max_s=100)
    windows = [one for one in Windows(Pauses()).of(recording.pieces()) if one is not None]
    recording.close()
    found = []
    for window in windows:
        given = extractor([window.samples.astype("float32") / 32768], sampling_rate=16_000, return_tensors="pt")
        begun = torch.tensor([[{"eng": 4, "deu": 5}[language]]])
        ids = model.generate(given["input_features"], decoder_input_ids=begun, max_new_tokens=40)[0].tolist()
        assert ids[:2] == [3, int(begun)]
        found.append([one for one in ids[2:] if one != 3])
    return found


def segments(events: list[Any]) -> list[Any]:
    return [one for event in events if isinstance(event, Segments) for one in event.segments]


@pytest.mark.parametrize(("fields", "code", "language"), [
    ({"language": "de"}, "deu", "german"),
    ({"language": "English"}, "eng", "english"),
    ({"task": "translate"}, "eng", "english"),
])  # fmt: skip
def test_tokens_are_those_of_transformers(
    folder: Path, engine: Any, speech: Path, fields: dict[str, Any], code: str, language: str
) -> None:
    events = heard(engine, speech, **fields)
    written = segments(events)
    assert [one.tokens for one in written] == theirs(folder, speech, code)
    assert sum(len(one.tokens) for one in written) > 5
    assert written[0].text.strip() == "".join(WORDS[one] for one in written[0].tokens if one >= 6)
    done = next(event for event in events if isinstance(event, Heard))
    assert done.language == language
    assert 0 <= written[0].start_s < written[-1].end_s <= done.audio_s


def test_one_language_is_not_another(engine: Any, speech: Path) -> None:
    assert segments(heard(engine, speech, language="de")) != segments(heard(engine, speech, language="en"))


@pytest.mark.parametrize(("fields", "told"), [
    ({}, "does not tell languages apart"),
    ({"language": "tlh"}, "no language that this model writes"),
    ({"language": "de", "words": True}, "no times of words"),
    ({"language": "de", "prompt": "a"}, "takes no prompt"),
    ({"language": "de", "temperature": 0.5}, "likeliest tokens"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused(engine: Any, speech: Path, fields: dict[str, Any], told: str) -> None:
    with pytest.raises(JobError, match=told):
        heard(engine, speech, **fields)


@pytest.mark.parametrize("quantization", ["none", "bnb-8bit"])
def test_it_takes_what_was_estimated(folder: Path, speech: Path, quantization: str) -> None:
    """Given another side's tensors in the files, then they are neither counted nor loaded."""
    found = recognised(folder)
    assert found is not None
    assert found[0].name == "speech"
    header = found[0].describe(folder, {"quantization": quantization})
    assert header.capabilities == ["transcription", "translation"]
    estimated = found[0].estimate(header, SpeechPlan(device="cpu", parallel=2)).host.weights
    engine = loaded(folder, quantization=quantization)
    assert engine.ready().parts["weights"] == pytest.approx(estimated, rel=0.05)
    assert segments(heard(engine, speech, language="de"))


@pytest.mark.parametrize(
    ("stride", "layers", "n_heard"), [(8, 1, 189), (8, 2, 25), (10**6, 10**6, 2), (1, 10**6, 1501)]
)
def test_positions_are_counted_whatever_the_configuration_says(stride: int, layers: int, n_heard: int) -> None:
    sizes = {"adaptor_stride": stride, "num_adapter_layers": layers}
    assert SeamlessHeader(sizes, (), "none", False, 100.0, is_relative=True).n_heard == n_heard


def test_folders_that_are_not_whole_are_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = recognised(tmp_path)
    assert found is not None
    config = json.loads((tmp_path / "config.json").read_text())
    for change, told in (
        ({"speech_encoder_layers": 9}, "the files have no speech_encoder"),
        ({"vocab_size": 0}, "sound vocab_size"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(HeaderError, match=told):
            found[0].describe(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(HeaderError, match="save_pretrained"):
        found[0].describe(tmp_path, {})
