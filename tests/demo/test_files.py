"""The committed files: small, and the GGUF file the same model as the Hugging Face folder."""

import json
import subprocess
import sys

import numpy as np
import pytest

from demo import GGUF_PATH, HF_PATH
from demo.evaluate import cases
from demo.toolbox import call_text

MIB = 1024 * 1024


def test_all_files_together_stay_small() -> None:
    files = [GGUF_PATH, *HF_PATH.iterdir()]
    assert sum(file.stat().st_size for file in files) <= 8 * MIB


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, demo; print(sorted({'torch', 'numpy', 'transformers', 'gguf', 'jinja2'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_gguf_holds_the_same_weights() -> None:
    gguf = pytest.importorskip("gguf")
    load_file = pytest.importorskip("safetensors.numpy").load_file
    from demo.export import gguf_tensor
    from demo.names import gguf_name

    config = json.loads((HF_PATH / "config.json").read_text())
    written = {tensor.name: tensor.data for tensor in gguf.GGUFReader(GGUF_PATH).tensors}
    for name, tensor in load_file(HF_PATH / "model.safetensors").items():
        assert np.array_equal(written.pop(gguf_name(name)), gguf_tensor(name, tensor, config))
    assert written == {}


@pytest.mark.engine
def test_llama_cpp_reads_and_answers_as_transformers_does() -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    from demo.greedy import Asker

    asker = Asker.load(HF_PATH)
    llm = llama_cpp.Llama(str(GGUF_PATH), n_ctx=1024, n_threads=1, verbose=False)
    exam = [case for case in cases(n_per_family=2) if case.family != "count"]
    for case, ours in zip(exam, asker.answer_all(exam), strict=True):
        ids = llm.tokenize(asker.prompt(case).encode(), add_bos=False, special=True)
        assert ids == asker.tokenizer.encode(asker.prompt(case)).ids
        assert llm(ids, max_tokens=220, temperature=0)["choices"][0]["text"] == ours
    llm.close()


def test_a_call_is_written_as_documented() -> None:
    assert call_text("get_weather", {"city": "Paris"}) == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'
    )
