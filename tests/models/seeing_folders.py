"""Small Hugging Face folders with eyes, of random weights, one for each type that is served: what they say means
nothing, and transformers computes the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer

from demo import HF_PATH

SIDE, PATCH, WIDTH = 56, 14, 64
VISION = {
    "hidden_size": WIDTH,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
GRID = [[56, 112], [112, 56], [112, 112]]
SQUARE = {"height": SIDE, "width": SIDE}
_TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Made(NamedTuple):
    """Before it is written."""

    config: Any
    tokenizer: Any
    images: Any
    processor: str
    told: dict[str, Any] = {}  # noqa: RUF012 - never changed


def write(folder: Path, kind: str) -> Any:
    """Write a folder of this type; the model itself, to be asked directly."""
    torch.manual_seed(1)
    made = MAKERS[kind]()
    model = hf.AutoModelForImageTextToText.from_config(made.config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.15)
    model.tie_weights()
    model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    made.images.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": made.processor, **made.told}))
    return model


def _tokenizer(*more: str, shown: str = "", **named: str) -> Any:
    tokenizer = Tokenizer.from_file(str(HF_PATH / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in more])
    made = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", extra_special_tokens=named or None
    )
    made.chat_template = _TURNS.replace("IMAGE", shown or more[0])
    return made


def _text(kind: Any, tokenizer: Any, **more: Any) -> Any:
    return kind(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=more.pop("num_hidden_layers", 2),
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
        **more,
    )


def _llava(config: Any = None, vision: Any = None, **more: Any) -> Made:
    tokenizer = _tokenizer("<image>")
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    told = {"patch_size": PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    made = (config or hf.LlavaConfig)(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=_text(hf.LlamaConfig, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        **(more or {"vision_feature_select_strategy": "default"}),
    )
    return Made(made, tokenizer, images, "LlavaProcessor", told)


def _llava_next() -> Made:
    made = _llava(hf.LlavaNextConfig, image_grid_pinpoints=GRID, vision_feature_select_strategy="default")
    images = hf.LlavaNextImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=GRID)
    return made._replace(images=images, processor="LlavaNextProcessor")


def _llava_onevision() -> Made:
    tokenizer = _tokenizer("<image>", "<video>")
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=_text(hf.Qwen2Config, tokenizer),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=GRID,
    )
    images = hf.LlavaOnevisionImageProcessorPil(size=SQUARE, image_grid_pinpoints=GRID)
    told = {"num_image_tokens": (SIDE // PATCH) ** 2, "vision_feature_select_strategy": "full"}
    return Made(config, tokenizer, images, "LlavaOnevisionProcessor", told)


def _qwen(config: Any, text: Any, vision: dict[str, Any], processor: str, patch: int = PATCH) -> Made:
    pads = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _tokenizer(*pads, shown="<|vision_start|><|image_pad|><|vision_end|>")
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    made = config(
        vision_config={"depth": 3, "num_heads": 2, "patch_size": patch, "spatial_merge_size": 2, **vision},
        text_config=_text(text, tokenizer, rope_parameters=rope).to_dict(),
        **dict(zip(names, tokenizer.convert_tokens_to_ids(list(pads)), strict=True)),
    )
    size = {"shortest_edge": (2 * patch) ** 2, "longest_edge": 4096 * (2 * patch) ** 2}
    return Made(made, tokenizer, hf.Qwen2VLImageProcessorPil(patch_size=patch, size=size), processor)


_MERGED = {"hidden_size": WIDTH, "intermediate_size": 64, "out_hidden_size": 64}


def _qwen2_vl() -> Made:
    vision = {"embed_dim": WIDTH, "hidden_size": 64, "mlp_ratio": 2}
    return _qwen(hf.Qwen2VLConfig, hf.Qwen2VLTextConfig, vision, "Qwen2VLProcessor")


def _qwen2_5_vl() -> Made:
    vision = {**_MERGED, "window_size": 56, "fullatt_block_indexes": [1]}
    return _qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLTextConfig, vision, "Qwen2_5_VLProcessor")


def _qwen3_vl() -> Made:
    vision = {**_MERGED, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    return _qwen(hf.Qwen3VLConfig, hf.Qwen3VLTextConfig, vision, "Qwen3VLProcessor", 16)


def _gemma3() -> Made:
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _tokenizer(*named.values(), **named)
    boi, eoi, soft = tokenizer.convert_tokens_to_ids(list(named.values()))
    rows = (SIDE // PATCH // 2) ** 2
    config = hf.Gemma3Config(
        text_config=_text(
            hf.Gemma3TextConfig,
            tokenizer,
            num_hidden_layers=6,
            head_dim=16,
            sliding_window=32,
            query_pre_attn_scalar=16,
        ),
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        mm_tokens_per_image=rows,
        boi_token_index=boi,
        eoi_token_index=eoi,
        image_token_index=soft,
    )
    return Made(
        config, tokenizer, hf.Gemma3ImageProcessorPil(size=SQUARE), "Gemma3Processor", {"image_seq_length": rows}
    )


def _idefics(config: Any, images: Any, processor: str) -> Made:
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tokenizer = _tokenizer("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *places)
    made = config(
        vision_config=VISION,
        text_config=_text(hf.LlamaConfig, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
    )
    return Made(
        made,
        tokenizer,
        images(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}),
        processor,
        {"image_seq_len": (SIDE // PATCH // 2) ** 2},
    )


def _internvl() -> Made:
    named = {
        "context_image_token": "<IMG_CONTEXT>",
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "video_token": "<video>",
    }
    tokenizer = _tokenizer(*named.values(), shown="<IMG_CONTEXT>\n", **named)
    rows = (SIDE // PATCH // 2) ** 2
    config = hf.InternVLConfig(
        vision_config={**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]},
        text_config=_text(hf.Qwen2Config, tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=rows,
    )
    return Made(config, tokenizer, _cropped(), "InternVLProcessor", {"image_seq_length": rows})


def _aya_vision() -> Made:
    marks = ("<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "TILE", "TILE_GLOBAL")
    tokenizer = _tokenizer("<image>", *marks)
    config = hf.AyaVisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=_text(hf.Cohere2Config, tokenizer, sliding_window=32, head_dim=16),
        image_token_index=tokenizer.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
    )
    return Made(config, tokenizer, _cropped(), "AyaVisionProcessor", {"patch_size": 2 * PATCH, "img_size": SIDE})


def _cropped() -> Any:
    return hf.GotOcr2ImageProcessorPil(size=SQUARE, crop_to_patches=True, max_patches=4)


def _blip2() -> Made:
    tokenizer = _tokenizer("<image>")
    tokenizer.chat_template = None
    text = hf.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=1,
    )
    former = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config={**former, "encoder_hidden_size": WIDTH, "vocab_size": 64},
        text_config=text.to_dict(),
        num_query_tokens=8,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    images = hf.BlipImageProcessorPil(size=SQUARE)
    return Made(config, tokenizer, images, "Blip2Processor", {"num_query_tokens": 8})


MAKERS: dict[str, Callable[[], Made]] = {
    "aya_vision": _aya_vision,
    "blip-2": _blip2,
    "gemma3": _gemma3,
    "idefics3": lambda: _idefics(hf.Idefics3Config, hf.Idefics3ImageProcessorPil, "Idefics3Processor"),
    "internvl": _internvl,
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen2_vl": _qwen2_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": lambda: _idefics(hf.SmolVLMConfig, hf.SmolVLMImageProcessorPil, "SmolVLMProcessor"),
    "vipllava": lambda: _llava(hf.VipLlavaConfig, vision_feature_layers=[-2, -3]),
}
