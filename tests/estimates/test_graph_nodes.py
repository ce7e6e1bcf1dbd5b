"""How many operations a pass is predicted to have, against those of llama.cpp's own graph."""

from __future__ import annotations

import collections
import ctypes
from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest
from llama_cpp._ggml import libggml

from backends.gguf.header import read
from backends.gguf.speed import n_nodes, works
from backends.messages import GeneratorPlan
from tests.models import shapes

pytestmark = pytest.mark.engine

FREE = {"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"}
"""They only name memory otherwise: a pass leaves them out."""
_OP_AT = 80
"""In `ggml_tensor`: behind its type, its buffer, and four sizes and strides."""
MOE = replace(shapes.SHAPES["qwen3moe"], n_experts=64, n_experts_used=8, n_ff=64)


def operations(path: Path) -> collections.Counter[str]:
    """Of a pass over one token."""
    name = libggml.ggml_op_name
    name.restype, name.argtypes = ctypes.c_char_p, [ctypes.c_int]
    found: collections.Counter[str] = collections.Counter()

    def asked(tensor: int, is_asked: bool, _: object) -> bool:
        if not is_asked:
            found[name(ctypes.c_int.from_address(tensor + _OP_AT).value).decode()] += 1
        return True

    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
    wanted = llama_cpp.llama_context_default_params()
    wanted.n_ctx, wanted.flash_attn_type = 256, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    callback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)(asked)
    wanted.cb_eval = ctypes.cast(callback, type(wanted.cb_eval))
    context = llama_cpp.llama_init_from_model(model, wanted)
    token = (ctypes.c_int32 * 1)(40)
    found.clear()
    assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(token, 1)) == 0
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return found


@pytest.mark.parametrize("shape", [shapes.LLAMA, MOE], ids=["dense", "experts"])
def test_operations_are_counted_as_the_library_has_them(tmp_path: Path, shape: shapes.Shape) -> None:
    path = shapes.build(tmp_path / "m.gguf", shape)
    header = read(path)

    told = operations(path)

    products = told.pop("MUL_MAT", 0) + told.pop("MUL_MAT_ID", 0)
    others = sum(n for name, n in told.items() if name not in FREE)
    host, device = works(header, GeneratorPlan(256, 1, device="cpu"))
    assert host.n_matrices + device.n_matrices == pytest.approx(products, abs=1), told
    assert n_nodes(header) == pytest.approx(others, rel=0.12), told
