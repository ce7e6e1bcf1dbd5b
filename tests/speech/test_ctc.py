"""Wav2Vec2-like folders: the letters transformers itself gives, the times of words, and what such models cannot do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.backend import HeaderError
from backends.engine import JobError
from backends.messages import Failed, Finished, LoadModel, SpoolFile
from backends.registry import recognised
from backends.speech.ctc import Letters
from backends.speech.kind import Heard, Pauses, Segments, SpeechPlan, Transcribe
from backends.speech.windows import Windows
from tests.speech.sound import Samples, wav

VOCABULARY = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<unk>": 3,
    "|": 4,
    **{c: 5 + n for n, c in enumerate("ABCDEFGHIJKLMNOP")},
}
SHAPE: dict[str, Any] = {
    "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "conv_dim": [16] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def made(folder: Path, kind: str, **more: Any) -> Path:
    """A folder of random weights, as its publisher would have it."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    config_class, model_class = {
        "wav2vec2": (transformers.Wav2Vec2Config, transformers.Wav2Vec2ForCTC),
        "hubert": (transformers.HubertConfig, transformers.HubertForCTC),
    }[kind]
    torch.manual_seed(11)
    model = model_class(config_class(**SHAPE, **more)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(40)
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    told = {"word_delimiter_token": "|", "pad_token": "<pad>", "unk_token": "<unk>", "do_lower_case": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({**told, "tokenizer_class": "Wav2Vec2CTCTokenizer"}))
    normalises = {"do_normalize": True, "sampling_rate": 16_000, "feature_extractor_type": "Wav2Vec2FeatureExtractor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(normalises))
    return folder


def theirs(folder: Path, samples: Any) -> str:
    """What transformers writes for one window."""
    import torch
    from transformers import AutoModelForCTC, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    model = AutoModelForCTC.from_pretrained(folder).eval()
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(folder)
    given = extractor(samples.astype(np.float32) / 32768, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        ids = model(given.input_values).logits[0].argmax(dim=-1)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(folder)
    text = tokenizer.decode(
        ids
    )  # skip_special_tokens leaves out blanks before repeats are counted, and so real doubles
    return " ".join(re.sub("<s>|</s>|<unk>", "", text).split())


def heard(engine: Any, path: Path, **fields: Any) -> list[Any]:
    job = Transcribe("job", SpoolFile(str(path), path.stat().st_size, "", "a.wav"), **fields)
    engine.add(engine.prepare(job))
    events = []
    while not engine.idle:
        events += engine.step().events
    return events


@pytest.fixture(scope="module")
def speech(said: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ctc") / "a.wav"
    path.write_bytes(wav(said))
    return path


@pytest.mark.engine
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("wav2vec2", {}),
        ("wav2vec2", {"feat_extract_norm": "layer", "do_stable_layer_norm": True}),
        ("hubert", {}),
    ],
)
def test_letters_are_those_of_transformers(tmp_path: Path, speech: Path, kind: str, more: dict[str, Any]) -> None:
    from backends.speech.audio import Recording
    from backends.speech.loading import load

    folder = made(tmp_path / kind, kind, **more)
    found = recognised(folder)
    assert found is not None
    assert found[0].name == "speech"
    header = found[0].describe(folder, {})
    assert header.capabilities == ["transcription"]
    assert header.about["architecture"] == kind
    engine = load(LoadModel("a", "speech", str(folder), SpeechPlan(parallel=2)), lambda _: None)
    events = heard(engine, speech, words=True)
    segments = [one for event in events if isinstance(event, Segments) for one in event.segments]
    recording = Recording(str(speech), n_bytes=10**7, max_s=100)
    windows = [window for window in Windows(Pauses()).of(recording.pieces()) if window is not None]
    recording.close()
    expected = " ".join(theirs(folder, window.samples) for window in windows)
    assert len(expected) > 10
    assert " ".join("".join(one.text for one in segments).split()) == expected
    words = [word for one in segments for word in one.words]
    assert [word.text for word in words] == expected.split()
    times = [at for word in words for at in (word.start_s, word.end_s)]
    assert times == sorted(times)
    done = next(event for event in events if isinstance(event, Heard))
    assert 0 <= times[0] <= times[-1] <= done.audio_s
    assert isinstance(events[-1], Finished)
    for wish in ({"language": "de"}, {"prompt": "a"}, {"temperature": 0.5}, {"task": "translate"}):
        with pytest.raises(JobError):
            heard(engine, speech, **wish)
    assert not any(isinstance(event, Failed) for event in events)
    measured = engine.ready().parts["weights"]
    assert 0 < measured < 2**20


def test_repeats_count_once_and_pauses_part_them() -> None:
    letters = Letters(("", "", "a", "b", "|"), blank=0, delimiter=4, lowers=False)
    assert letters.words([0, 2, 2, 0, 2, 3, 4, 4, 0, 3, 3, 1]) == [("aab", 1, 6, (2, 2, 3)), ("b", 9, 11, (3,))]
    assert letters.words([2, 1, 2, 2]) == [("aa", 0, 4, (2, 2))]
    assert letters.words([4, 0, 4]) == letters.words([]) == []


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another class": ({"architectures": ["Wav2Vec2ForPreTraining"]}, "only Wav2Vec2ForCTC writes text"),
    "no width": ({"hidden_size": 0}, "no sound hidden_size"),
    "letters": ({"vocab_size": 7}, "lm_head.weight is 21x32"),
    "strides": ({"conv_stride": "fast"}, "no sound conv_stride"),
    "slow": ({"conv_stride": [16_000]}, "no letters come as slowly"),
    "an adapter": ({"add_adapter": True}, "adapter"),
}


def test_folders_that_are_not_sound_are_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "a", "wav2vec2")
    config = json.loads((folder / "config.json").read_text())
    backend = recognised(folder)
    assert backend is not None
    for case, (change, sentence) in BROKEN.items():
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(HeaderError, match=sentence):
            pytest.fail(f"{case}: {backend[0].describe(folder, {})}")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.json").unlink()
    with pytest.raises(HeaderError, match="has no vocab"):
        backend[0].describe(folder, {})


@pytest.mark.engine
def test_weights_that_are_no_numbers_fail_their_recording_alone(tmp_path: Path, speech: Path) -> None:
    """Given a weight that is NaN, then a recording fails with that reason, and the engine takes the next one."""
    import torch
    from safetensors.torch import load_file, save_file

    from backends.speech.loading import load

    folder = made(tmp_path / "broken", "wav2vec2")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.bias"] = torch.full_like(tensors["lm_head.bias"], float("nan"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    engine = load(
        LoadModel("m", "speech", str(folder), SpeechPlan(device="cpu", parallel=1), threads=1), lambda _: None
    )
    for _ in range(2):
        (failed,) = [event for event in heard(engine, speech) if isinstance(event, Failed)]
        assert failed.code == "internal_error"
        assert "not finite" in failed.message
