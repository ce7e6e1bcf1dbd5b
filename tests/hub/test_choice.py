"""What of a repository's files is a model, and what addresses of pages mean: pure."""

import pytest

from server.hub.choice import ChoiceError, RemoteFile, folder, ggufs, is_plain_name, with_name, with_quant
from server.settings.references import HubReference, LocateError, parse_hub_reference, parse_page


def files(*names):
    return [RemoteFile(name, 10 + at, None, "0" * 40) for at, name in enumerate(names)]


def test_split_files_are_one_model_and_only_when_all_parts_are_there():
    there = files(
        "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf",
        "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf",
        "m-UD-Q2_K_XL.gguf",
        "half-Q8_0-00001-of-00003.gguf",
        "mmproj-other-F16.gguf",
        "m.imatrix.gguf",
        "imatrix-m.gguf",
    )
    found = ggufs(there)
    assert [(one.label, one.first, one.size_bytes) for one in found if "imatrix" not in one.first] == [
        ("Q4_K_M", "Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", 21),
        ("UD-Q2_K_XL", "m-UD-Q2_K_XL.gguf", 12),
    ]
    assert with_name(found, "o/n", "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf") is with_quant(found, "o/n", "q4_k_m")
    with pytest.raises(ChoiceError, match=r"has no Q8_0\. hint: it has"):
        with_quant(found, "o/n", "Q8_0")


def test_a_folder_is_what_onecard_reads():
    one = folder(
        files("config.json", "model.safetensors", "model.fp16.safetensors", "tokenizer.json", "1_Pooling/config.json",
              "onnx/model.onnx", "x.py", "original/params.json", "README.md"),
        "o/n",
    )  # fmt: skip
    assert {file.name for file in one.files} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "1_Pooling/config.json",
    }
    assert one.first == "config.json"


def test_a_pipeline_that_makes_images_is_told_how_it_is_served():
    with pytest.raises(ChoiceError, match=r"makes images\. hint: `hf download` fetches it, and its folder is served"):
        folder(files("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"), "o/n")


@pytest.mark.parametrize(
    "name", ["../a.gguf", "a/../../b", "/etc/passwd", "a\\..\\b", "~/a", "", "a/./b", "\x1b[2J", "a\u202eb", "x" * 2000]
)
def test_a_name_that_leads_elsewhere_or_cannot_be_shown_is_no_name(name):
    assert not is_plain_name(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://huggingface.co/o/n", HubReference("o/n", None, "main")),
        ("http://www.huggingface.co/o/n/?x=1#y", HubReference("o/n", None, "main")),
        ("hf.co/o/n:Q4_K_M", HubReference("o/n", "Q4_K_M", "main")),
        ("https://huggingface.co/o/n/tree/v1.0", HubReference("o/n", None, "v1.0")),
        ("https://huggingface.co/o/n/tree/refs%2Fpr%2F1", HubReference("o/n", None, "refs/pr/1")),
        ("https://huggingface.co/o/n/blob/main/Q4/a.gguf", HubReference("o/n", None, "main", "Q4/a.gguf")),
        (
            "https://huggingface.co/o/n/resolve/main/a%20b.gguf?download=true",
            HubReference("o/n", None, "main", "a b.gguf"),
        ),
        ("hf:o/n:Q4_0@v2", HubReference("o/n", "Q4_0", "v2")),
        ("https://huggingface.co/../n", None),
        ("https://huggingface.co.evil.example/o/n", None),
        ("https://huggingface.co@evil.example/o/n", None),
        ("https://[::1/o/n", None),
        ("file:///etc/passwd", None),
        ("https://huggingface.co/o/n/resolve/..%2F..%2Fx/a.gguf", None),
    ],
)
def test_what_addresses_mean(text, expected):
    assert parse_hub_reference(text) == expected
    if expected is None:
        with pytest.raises(LocateError):
            parse_page(text)


def test_a_model_comes_with_its_projector() -> None:
    there = files(
        "seer-4b-Q4_K_M.gguf",
        "mmproj-seer-4b-f32.gguf",
        "mmproj-seer-4b-F16.gguf",
        "seer-4b-BF16/seer-4b-BF16-00001-of-00002.gguf",
        "seer-4b-BF16/seer-4b-BF16-00002-of-00002.gguf",
        "blind-Q8_0.gguf",
    )
    taken = {choice.first: [file.name for file in choice.files] for choice in ggufs(there)}
    assert taken["seer-4b-Q4_K_M.gguf"] == ["seer-4b-Q4_K_M.gguf", "mmproj-seer-4b-F16.gguf"]
    assert taken["blind-Q8_0.gguf"] == ["blind-Q8_0.gguf"]
    assert len(taken["seer-4b-BF16/seer-4b-BF16-00001-of-00002.gguf"]) == 2
