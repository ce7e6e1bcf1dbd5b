"""Sounds through a real engine: what it says depends on what is heard, and on nothing that runs or was kept."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from llama_cpp import mtmd_cpp as mtmd

from backends.backend import HeaderError
from backends.engine import JobError
from backends.generation.sequence import PreparedGenerate
from backends.generation.sounds import samples_of
from backends.gguf.backend import Gguf
from backends.gguf.library_log import LibraryLog
from backends.gguf.model import Model
from backends.gguf.projector import projector_for
from backends.messages import KvLayout
from tests.gguf.driver import Outcome, run
from tests.models import hearing
from tests.models.hearing import EARS, RATE, ROWS, Ear, tone
from tests.models.seeing import picture
from tests.seeing.driver import Piece, look, medium, open_seer

pytestmark = pytest.mark.engine

A, B, C = [7, 8, 9, 10], [11, 12, 13], list(range(20, 90))
LOW, HIGH = tone(220), tone(1760, seconds=0.5)
PROMPTS: list[list[Piece]] = [[A, LOW, B], [A, HIGH, B], [A, B], [LOW, C, HIGH, A]]
LAYOUT: dict[Ear, KvLayout] = {"ultravox": "split", "omni": "unified"}
ROUNDING = 1e-3


@pytest.fixture(scope="module", params=EARS)
def ear(request: pytest.FixtureRequest) -> Ear:
    found: Ear = request.param
    return found


@pytest.fixture(scope="module")
def model(ear: Ear, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hearing.build(tmp_path_factory.mktemp(ear), ear)


@pytest.fixture(scope="module")
def alone(model: Path) -> Iterator[list[Outcome]]:
    """What is said to each prompt when nothing else is there."""
    engine = open_seer(model, parallel=1, context=2048)
    yield [run(engine, [look(pieces, cache_prompt=False)])[0] for pieces in PROMPTS]
    engine.close()


def alike(outcome: Outcome, expected: Outcome) -> None:
    """The same tokens, as likely as before: a pass of other length rounds in the seventh digit."""
    ours, theirs = outcome.logprobs(), expected.logprobs()
    assert [entry.bytes for entry in ours] == [entry.bytes for entry in theirs]
    assert [entry.logprob for entry in ours] == pytest.approx([entry.logprob for entry in theirs], abs=ROUNDING)


def test_another_sound_is_another_answer(alone: list[Outcome]) -> None:
    first = [outcome.logprobs()[0] for outcome in alone]
    assert len({(entry.bytes, entry.logprob) for entry in first}) == len(PROMPTS)


def test_a_sound_takes_the_rows_that_llama_cpp_makes_of_it(alone: list[Outcome], ear: Ear) -> None:
    heard, silent = (alone[number].started.prompt_tokens for number in (0, 2))
    around = 0 if ear == "ultravox" else len("<|audio_bos|><|audio_eos|>")
    assert heard - silent == ROWS[ear] + around


def test_answers_are_the_same_cold_shared_cached_and_restored(
    model: Path, alone: list[Outcome], ear: Ear, tmp_path: Path
) -> None:
    for _ in ("cold", "restored"):
        engine = open_seer(model, layout=LAYOUT[ear], store=tmp_path / "store", context=2048)
        outcomes = run(engine, [look(pieces) for pieces in PROMPTS])
        outcomes += run(engine, [look(pieces) for pieces in PROMPTS])
        for number, outcome in enumerate(outcomes):
            alike(outcome, alone[number % len(PROMPTS)])
        assert outcomes[-1].started.cached_tokens > len(C)
        engine.close()


def test_it_is_what_llama_cpp_itself_evaluates(model: Path, alone: list[Outcome]) -> None:
    """The tokens that greedy decoding chooses behind mtmd's own evaluation of the same parts."""
    log = LibraryLog()
    loaded = Model(model, gpu_layers=0, log=log)
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = params.warmup = params.print_timings = False
    projector = next(model.parent.glob("mmproj*"))
    eared = mtmd.mtmd_init_from_file(str(projector).encode(), loaded.pointer, params)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = 2048
    context = llama_cpp.llama_init_from_model(loaded.pointer, settings)
    assert eared
    assert context

    n_past = _decoded(context, A, 0)
    n_past = _heard(eared, context, samples_of(medium(LOW), rate=RATE, max_s=10), n_past)
    n_past = _decoded(context, B, n_past)
    chosen = []
    for _ in range(8):
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (loaded.n_vocab,))
        chosen.append(int(logits.argmax()))
        n_past = _decoded(context, chosen[-1:], n_past)
    mtmd.mtmd_free(eared)
    llama_cpp.llama_free(context)

    pieces = [loaded.piece(token) for token in chosen]
    loaded.close()
    assert [entry.bytes for entry in alone[0].logprobs()][:8] == pieces


def _decoded(context: llama_cpp.llama_context_p, tokens: list[int], n_past: int) -> int:
    batch = llama_cpp.llama_batch_get_one((llama_cpp.llama_token * len(tokens))(*tokens), len(tokens))
    assert llama_cpp.llama_decode(context, batch) == 0
    return n_past + len(tokens)


def _heard(eared: int, context: llama_cpp.llama_context_p, samples: np.ndarray, n_past: int) -> int:
    chunks = mtmd.mtmd_input_chunks_init()
    bitmap = mtmd.mtmd_bitmap_init_from_audio(samples.size, samples.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
    part = mtmd.mtmd_input_part()
    part.bitmap = bitmap
    parts = (ctypes.POINTER(mtmd.mtmd_input_part) * 1)(ctypes.pointer(part))
    assert mtmd.mtmd_tokenize_from_parts(eared, chunks, parts, 1, False) == 0
    past = llama_cpp.llama_pos(n_past)
    status = mtmd.mtmd_helper_eval_chunks(eared, context, chunks, n_past, 0, 2048, False, ctypes.byref(past))
    assert status == 0
    mtmd.mtmd_bitmap_free(bitmap)
    mtmd.mtmd_input_chunks_free(chunks)
    return past.value


def test_the_same_sound_is_encoded_once(model: Path, tmp_path: Path) -> None:
    engine = open_seer(model, store=tmp_path / "store", context=2048)
    looked = []
    turns: list[list[Piece]] = [[C, LOW, A], [C, LOW, A, B]]
    for pieces in turns:
        prepared = engine.prepare(look(pieces, n_tokens=4))
        assert isinstance(prepared, PreparedGenerate)
        assert prepared.looked is not None
        looked.append(prepared.looked.n_encoded)
    assert looked == [1, 0]
    engine.close()


def test_images_and_sounds_stand_in_one_prompt(tmp_path: Path) -> None:
    model = hearing.build(tmp_path, "omni")
    assert {"vision", "hearing"} <= {*Gguf().describe(model, {}).capabilities}
    red, blue = picture(1, width=90, height=60), picture(2, width=90, height=60)
    prompts: list[list[Piece]] = [[A, red, C, LOW, B], [A, blue, C, LOW, B], [A, red, C, HIGH, B]]
    engine = open_seer(model, context=2048)
    cold = [run(engine, [look(pieces, cache_prompt=False)])[0] for pieces in prompts]
    assert len({outcome.logprobs()[0].logprob for outcome in cold}) == len(prompts)
    for outcome, expected in zip(run(engine, [look(pieces) for pieces in prompts]), cold, strict=True):
        alike(outcome, expected)
    engine.close()


def test_what_is_no_sound_costs_its_own_request(tmp_path: Path) -> None:
    engine = open_seer(hearing.build(tmp_path, "ultravox"), options={"max_audio_s": 2.0})
    junk = LOW[:12] + b"\0" * 40
    for data, code, told in (
        (junk, "unsupported_media", "cannot be heard: it is no recording"),
        (tone(300, seconds=0.05), "invalid_value", "is refused: .* 0.05 s, and 0.1 s is the shortest"),
        (tone(300, seconds=2.5), "invalid_value", "has 2.5 s, and 2 s are the most .*set max_audio_s"),
    ):
        with pytest.raises(JobError, match=rf"audio 1 of the prompt \({len(data)} bytes\) .*{told}") as caught:
            engine.prepare(look([A, data, B]))
        assert caught.value.code == code
    assert run(engine, [look([A, LOW, B])])[0].finished.completion_tokens == 16
    engine.close()


def test_a_projector_whose_rows_llama_cpp_miscounts_is_sent_no_sound(tmp_path: Path) -> None:
    """It would end its process: Ultravox joins 8 rows, and 1500 of them are no whole number of eights."""
    path = hearing.build(tmp_path, "ultravox", stack=8)
    header = Gguf().describe(path, {})
    assert "hearing" not in header.capabilities
    assert any("counts 187 rows of 30 s of sound in it and computes 188" in remark for remark in header.remarks)
    engine = open_seer(path)
    with pytest.raises(JobError, match="reads text alone, and takes no sounds"):
        engine.prepare(look([A, LOW, B]))
    engine.close()


def test_more_seconds_than_a_prompt_may_hold_are_refused_with_the_model(tmp_path: Path) -> None:
    """The key is that of models which transcribe, too, and theirs may be a day."""
    path = hearing.build(tmp_path, "ultravox")
    with pytest.raises(HeaderError, match=r"max_audio_s is 3601, and 3600 s are the most"):
        Gguf().describe(path, {"max_audio_s": 3601.0})


def test_an_estimate_counts_the_longest_sound_that_is_read_at_once(tmp_path: Path) -> None:
    """Whisper's encoders read 30 s of it, others all."""
    path = hearing.build(tmp_path, "ultravox")
    found = {}
    for kind in ("ultravox", "lfm2a"):
        for seconds in (30.0, 300.0):
            one = projector_for(path, 64, {"max_audio_s": seconds})
            assert one is not None
            metadata = {**one.header.metadata, "clip.audio.projector_type": kind}
            one = replace(one, header=replace(one.header, metadata=metadata))
            found[kind, seconds] = (one.longest_read_s, one.encoder_bytes, one.kept_bytes(64) + one.way_bytes)
    assert found["ultravox", 30.0][:2] == found["ultravox", 300.0][:2]
    assert found["lfm2a", 300.0][0] == 300.0
    assert found["lfm2a", 300.0][1] > 10 * (found["lfm2a", 30.0][1] - found["ultravox", 30.0][1])
    assert found["lfm2a", 300.0][1] > found["ultravox", 300.0][1]
    assert found["ultravox", 300.0][2] > found["ultravox", 30.0][2]
