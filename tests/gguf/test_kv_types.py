"""Types of keys and values apart, and a KV cache in host memory: how they are written, counted, refused and told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backends.engine import LoadError
from backends.gguf.arithmetic import predict
from backends.gguf.info import HeaderInfo
from backends.gguf.loading import check_the_card_takes, load
from backends.kv_types import keys_and_values, kv_types_of
from backends.messages import GeneratorPlan, Layers
from backends.plan import Amount, Wish
from backends.registry import BACKENDS
from server.cli.ps import kv_caches, row
from server.memory.capacity import capacity_of
from server.memory.estimator import Estimate
from server.memory.placement import place
from server.scheduling.budget import Refused
from server.settings.config import Settings
from tests.models.shapes import LLAMA, build
from tests.specs import spec_of

if TYPE_CHECKING:
    from backends.messages import LoadPlan

GIB = 2**30
WISH = Wish(4096, 2, "q8_0/q4_0", None, "cpu")


def header_of(tmp_path: Path, **shape: Any) -> HeaderInfo:
    return BACKENDS["gguf"].describe(build(tmp_path / "m.gguf", replace(LLAMA, **shape)), {})


@pytest.mark.parametrize(
    ("written", "planned"),
    [
        ("q8_0", "q8_0"),
        ("q8_0/q4_0", "q8_0/q4_0"),
        ("Q8_0/F16", "q8_0/f16"),
        ("k8v4", "q8_0/q4_0"),
        ("k16v8", "f16/q8_0"),
        ("q8_0/q8_0", "q8_0"),
        ("k4v4", "q4_0"),
    ],
)
def test_a_pair_is_written_as_llama_cpp_has_it_or_for_short(written: str, planned: str) -> None:
    settings = Settings.model_validate({"models": {"a": {"path": "a.gguf", "kv_type": written}}})

    assert settings.models["a"].kv_type == planned
    assert "/".join(dict.fromkeys(keys_and_values(planned))) == planned


@pytest.mark.parametrize("written", ["q8_0/", "/q8_0", "q8_0/q9_0", "q8_0/q4_0/q4_0", "k8", "k9v4", "k8v4v4", ""])
def test_what_is_no_type_is_refused_with_the_words_there_are(written: str) -> None:
    with pytest.raises(ValueError, match=r"no type of a KV cache: one of f32, .* q8_0/q4_0, or k8v4"):
        kv_types_of(written)


def test_each_of_both_types_takes_its_own_bytes(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    q8, q4, pair = (predict(header, GeneratorPlan(4096, 2, kind)).host.kv for kind in ("q8_0", "q4_0", "q8_0/q4_0"))

    assert pair == (q8 + q4) // 2
    assert q4 < pair < q8


def test_heads_that_have_no_whole_blocks_refuse_the_side_by_name(tmp_path: Path) -> None:
    header = header_of(tmp_path, head_size=48)
    room = Amount(host=8 * GIB)

    refused = place("m", header, WISH, budget=room, free=room)

    assert isinstance(refused, Refused)
    assert refused.code == "cannot_fit"
    expected = "m: kv_type q8_0 holds blocks of 32 values, and a head's keys of this model are 48. hint: kv_type f16"
    assert refused.message == expected
    assert "values of this model are 48" in str(header.forbids("f16/q4_0"))

    def estimate(plan: LoadPlan) -> Estimate:
        return Estimate(BACKENDS["gguf"].estimate(header, plan), "header")

    told = capacity_of("m", header, WISH, estimate, budget=room, free=room)
    assert (told.fits, told.reason) == (False, expected)


def test_values_in_blocks_are_refused_where_there_is_no_flash_attention(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    grok = replace(
        header, architecture="grok", metadata={k.replace("llama.", "grok."): v for k, v in header.metadata.items()}
    )

    assert "flash attention" in str(grok.forbids("q8_0/q4_0"))
    assert str(grok.forbids("q8_0")).endswith("hint: kv_type q8_0/f16")
    assert grok.forbids("q8_0/f16") is None
    assert header.forbids("q8_0/q4_0") is None


@pytest.mark.engine
def test_a_build_without_the_kernels_refuses_a_pair_on_a_card() -> None:
    """This build has none at all; in host memory the CPU attends, over any pair."""
    pair = GeneratorPlan(512, 1, "q8_0/q4_0", device="cuda")

    with pytest.raises(LoadError, match=r"kv_type q8_0/q4_0: .*FA_ALL_QUANTS"):
        check_the_card_takes(pair)
    check_the_card_takes(GeneratorPlan(512, 1, "q8_0/q4_0", device="cuda", kv_offload="host"))
    check_the_card_takes(GeneratorPlan(512, 1, "q8_0", device="cuda"))


@pytest.mark.engine
def test_a_loaded_pair_is_told(canary_path: Path) -> None:
    engine = load(
        spec_of("c", "gguf", str(canary_path), context=512, parallel=1, kv_type="q8_0/q4_0", threads=1), lambda _: None
    )
    try:
        generator = engine.ready().generator
        assert generator is not None
        assert generator.kv_type == "q8_0/q4_0"
    finally:
        engine.close()
    shown = {"models": [{"name": "c", "kv_type": generator.kv_type}, {"name": "d", "kv_type": "f16"}, {"name": "e"}]}
    assert kv_caches(shown) == ["c: KV cache of q8_0 keys and q4_0 values"]


def test_a_cache_in_host_memory_is_counted_there(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    on_card, on_host = (
        predict(header, GeneratorPlan(32768, 2, device="cuda", kv_offload=where)) for where in ("card", "host")
    )

    assert on_card.device.kv == on_host.host.kv > 0
    assert on_card.host.kv == on_host.device.kv == 0
    assert on_host.host.compute > on_card.host.compute  # the CPU attends
    assert BACKENDS["gguf"].card_share(header, GeneratorPlan(32768, 2, device="cuda", kv_offload="host")) == 0


def test_a_context_beyond_the_card_fits_with_its_cache_in_host_memory(tmp_path: Path) -> None:
    header = header_of(tmp_path, n_layers=32, n_kv_heads=4)
    card = Amount(GIB, 16 * GIB)
    wish = Wish(131_072, 1, "f16", None, "cuda", kv_tokens=131_072)
    offloaded = place("m", header, replace(wish, kv_offload="host"), budget=card, free=card)

    assert isinstance(place("m", header, replace(wish, gpu_layers=33), budget=card, free=card), Refused)
    assert not isinstance(offloaded, Refused)
    assert offloaded.plan.words.endswith("KV cache in host memory")
    figures = BACKENDS["gguf"].choices.figures(header, offloaded.plan)
    assert (figures["kv_offload"], figures["gpu_layers"]) == ("host", 33)


def test_without_a_card_there_is_no_other_memory_to_offload_to(tmp_path: Path) -> None:
    header = header_of(tmp_path)
    plans = list(BACKENDS["gguf"].plans(header, replace(WISH, kv_offload="host")))

    assert {plan.kv_offload for plan in plans} == {"card"}


def test_who_computes_with_a_cache_in_host_memory_says_so() -> None:
    assert Layers(33, 33, kv_on_host=True).told == {"kv_offload": "host"}
    assert Layers(33, 33).told == {}
    shown = row({"name": "m", "state": "ready", "kv_offload": "host"}, on_card=True)
    assert shown[1] == "ready KV cache in RAM"


def test_a_folder_refuses_both_by_name() -> None:
    assert set(BACKENDS["bnb"].refuses) >= {"kv_type", "kv_offload"}
