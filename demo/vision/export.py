"""Writes the trained model that sees: the Hugging Face folder, and of it the two files that llama.cpp reads."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import LlavaForConditionalGeneration

from demo.chat import TEMPLATE_PATH
from demo.export import save_gguf
from demo.tokenizer import tokenizer_config

_LANGUAGE: Final = "language_model."
_TOWER: Final = "vision_tower."
_PROJECTOR: Final = "multi_modal_projector."
_OF_THE_TOWER: Final = {
    "embeddings.patch_embedding": "v.patch_embd",
    "embeddings.position_embedding": "v.position_embd",
}
_OF_A_LAYER: Final = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_OF_THE_PROJECTOR: Final = {"linear_1": "mm.0", "linear_2": "mm.2"}


def save_folder(model: LlavaForConditionalGeneration, tokenizer: Tokenizer, folder: Path) -> None:
    """F16 safetensors with config, tokenizer, chat template and what to do with pictures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = tokenizer_config(model.config.text_config.max_position_embeddings)
    side = model.config.vision_config.image_size
    pictures = {
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "LlavaProcessor",
        "size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255,
        "resample": 2,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
    }
    places = {
        "processor_class": "LlavaProcessor",
        "image_token": tokenizer.id_to_token(model.config.image_token_id),
        "patch_size": model.config.vision_config.patch_size,
        "num_additional_image_tokens": 0,
        "vision_feature_select_strategy": model.config.vision_feature_select_strategy,
    }
    files = {"tokenizer_config": settings, "preprocessor_config": pictures, "processor_config": places}
    for name, content in ((f"{name}.json", content) for name, content in files.items()):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(TEMPLATE_PATH, folder / "chat_template.jinja")


def save_language(folder: Path, path: Path) -> None:
    """The folder's language model as GGUF."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]
    tensors = {
        own: tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
        if (own := language_name(name)) is not None
    }
    with tempfile.TemporaryDirectory() as name:
        alone = Path(name)
        (alone / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, alone / "model.safetensors")
        for file in ("tokenizer.json", "chat_template.jinja"):
            shutil.copy(folder / file, alone / file)
        save_gguf(alone, path, name="onecard demo vision", what="The language model of a toy that sees colours.")


def save_projector(folder: Path, path: Path) -> None:
    """The folder's tower and projector as the GGUF file that llama.cpp's mtmd reads."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type("mmproj")
    writer.add_name("onecard demo vision")
    writer.add_license("mit")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    _write_figures(writer, config["vision_config"], width=config["text_config"]["hidden_size"])
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        if (theirs := projector_name(name)) is not None:
            half = tensor.ndim == 4 or (tensor.ndim == 2 and "position" not in name)
            writer.add_tensor(theirs, _typed(tensor, np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_figures(writer: gguf.GGUFWriter, vision: dict[str, Any], *, width: int) -> None:
    figures = {
        "embedding_length": vision["hidden_size"],
        "feed_forward_length": vision["intermediate_size"],
        "block_count": vision["num_hidden_layers"],
        "projection_dim": width,
        "attention.head_count": vision["num_attention_heads"],
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
    }
    for key, value in figures.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", [0.5] * 3)
    writer.add_array("clip.vision.image_std", [0.5] * 3)


def language_name(name: str) -> str | None:
    """What a tensor of the folder is called where the language model is alone; None for those of the eyes."""
    return "model." + name.split(_LANGUAGE)[1].removeprefix("model.") if _LANGUAGE in name else None


def projector_name(name: str) -> str | None:
    """What mtmd calls a tensor of the folder; None for those of the language model, and for a norm it leaves out."""
    path, _, kind = name.rpartition(".")
    if _PROJECTOR in path:
        return f"{_OF_THE_PROJECTOR[path.split(_PROJECTOR)[1]]}.{kind}"
    if _TOWER not in path:
        return None
    own = path.split(_TOWER)[1].removeprefix("vision_model.")
    if own in _OF_THE_TOWER:
        return f"{_OF_THE_TOWER[own]}.{kind}"
    if not own.startswith("encoder.layers."):
        return None
    _, _, layer, part = own.split(".", 3)
    return f"v.blk.{layer}.{_OF_A_LAYER[part]}.{kind}"


def _typed(tensor: NDArray[Any], dtype: type[np.floating[Any]]) -> NDArray[Any]:
    return np.ascontiguousarray(tensor.astype(dtype))
