"""What a folder's files say that it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.backend import HeaderError
from backends.bnb.header import read
from backends.bnb.layout import Layout, LayoutError, input_limit, read_layout
from backends.messages import EncoderPlan
from backends.registry import estimate
from tests.embeddings.models import minilm

BERT = {"model_type": "bert", "architectures": ["BertModel"]}
MODULES = [("", "Transformer"), ("1_Pooling", "Pooling")]


def folder(path: Path, modules: list[tuple[str, str]], pooling: dict[str, Any], **more: Any) -> Path:
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    listed = [{"path": where, "type": f"sentence_transformers.models.{kind}"} for where, kind in modules]
    (path / "modules.json").write_text(json.dumps(listed))
    (path / "config_sentence_transformers.json").write_text(json.dumps(more))
    return path


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_the_pooling_is_the_folders(tmp_path, settings, pooling):
    assert read_layout(folder(tmp_path, MODULES, settings), {}) == Layout("vectors", pooling)


def test_dense_modules_and_the_default_prompt_are_kept(tmp_path):
    modules = [*MODULES, ("2_Dense", "Dense"), ("3_Normalize", "Normalize")]
    told = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}

    found = read_layout(folder(tmp_path, modules, {"pooling_mode_mean_tokens": True}, **told), {})

    assert found == Layout("vectors", "mean", dense=("2_Dense",), prompt="query: ")


@pytest.mark.parametrize(
    ("modules", "pooling", "says"),
    [
        ([("", "Transformer"), ("1_Pooling", "WeightedLayerPooling")], {}, "WeightedLayerPooling"),
        ([("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")], {}, "does not begin with"),
        ([("", "Transformer")], {}, "does not begin with"),
        ([("", "Transformer"), ("../../etc", "Pooling")], {}, "not one inside"),
        (MODULES, {"pooling_mode_weightedmean_tokens": True}, "none of mean, cls"),
        (MODULES, {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "none of mean, cls"),
        (MODULES, {}, "none of mean, cls"),
    ],
)
def test_a_way_to_vectors_that_is_not_known_is_named(tmp_path, modules, pooling, says):
    with pytest.raises(LayoutError, match=says):
        read_layout(folder(tmp_path, modules, pooling), {})


@pytest.mark.parametrize("text", ["{", "{}", '[{"type": 3}]', "[3]"])
def test_a_broken_list_of_modules_is_refused(tmp_path, text):
    (tmp_path / "modules.json").write_text(text)
    with pytest.raises(LayoutError, match=r"modules\.json"):
        read_layout(tmp_path, BERT)


@pytest.mark.parametrize(
    ("config", "gives"),
    [
        (BERT, "vectors"),
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, "vectors"),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForSequenceClassification"]}, "scores"),
        ({"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True}, "text"),
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "text"),
        ({"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"]}, "scores"),
        ({}, "text"),
    ],
)
def test_without_modules_the_architecture_tells(tmp_path, config, gives):
    assert read_layout(tmp_path, config).gives == gives


def test_positions_behind_the_padding_are_not_counted():
    assert input_limit(8192, {"model_type": "xlm-roberta", "max_position_embeddings": 514}) == 512
    assert input_limit(256, {"model_type": "bert", "max_position_embeddings": 512}) == 256
    assert input_limit(8192, {"model_type": "bert", "max_position_embeddings": 512}) == 512


def test_the_price_of_an_encoder_has_no_cache():
    header = read(minilm())
    footprint = estimate(header, EncoderPlan(512)).host

    assert header.gives == "vectors"
    assert header.n_ctx_train == 512
    assert footprint.kv == 0
    assert 40e6 < footprint.weights < 100e6


def test_a_folder_with_a_broken_layout_is_a_header_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    (tmp_path / "modules.json").write_text("{")
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(HeaderError, match=r"modules\.json"):
        read(tmp_path)
