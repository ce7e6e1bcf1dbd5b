"""GGUF files through llama.cpp, as `backends.backend.Backend` asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from backends import ladder
from backends.backend import AT_MOST, DRAFT, MTP, Files, HeaderError, Setting
from backends.files import adapters, foreign
from backends.gguf import arithmetic, offload
from backends.gguf.adapters import described
from backends.gguf.header import read
from backends.gguf.info import HeaderInfo
from backends.gguf.parts import is_gguf, split_parts
from backends.gguf.projector import candidates, projector_for
from backends.gguf.servable import unservable
from backends.gguf.speed import GgufSpeeds
from backends.kinds import OF_TEXT, AnyKind
from backends.plan import AUTO_CONTEXT, RUNTIME_BYTES, Amount, Footprint, Wish
from backends.text_choices import TextChoices

if TYPE_CHECKING:
    from backends.backend import Header
    from backends.choices import Choices
    from backends.messages import MediaKind, TextPlan
    from backends.options import Options
    from backends.speed import Speeds

_AS_QUANTISED: Final = "which stays as it was quantised"


_SIZES: Final = (
    "embedding_length",
    "feed_forward_length",
    "expert_feed_forward_length",
    "expert_count",
    "expert_used_count",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "rope.dimension_count",
)
_LEAST_LIMIT: Final = 65_536


def _check_figures(header: HeaderInfo) -> None:
    """No size of the metadata may go beyond every tensor that is there. Raises HeaderError."""
    widest = max((n for tensor in header.tensors for n in tensor.shape), default=0)
    for key in _SIZES:
        if (value := header.number(key)) > max(widest, _LEAST_LIMIT):
            raise HeaderError(
                f"the file says {header.architecture}.{key} = {value}, and no side of its tensors is longer than "
                f"{widest}. hint: the file is damaged; take the publisher's"
            )


def _host_layers(header: HeaderInfo, options: Mapping[str, Setting]) -> dict[str, int]:
    """How many layers the operator wants to keep in host memory in part. Raises HeaderError."""
    asked = {}
    for key in offload.KINDS:
        most = header.host_layers(key)
        if isinstance(bound := options.get(f"{key}{AT_MOST}"), int):
            asked[str(key)] = min(bound, most)
        if not isinstance(value := options.get(key), int):
            continue
        if value > most:
            what = "experts" if key == "expert_layers" else "feed-forward weights of their own"
            has = f"{most} layers of this model have {what}" if most else f"no layer of this model has {what}"
            raise HeaderError(
                f"{has}, and {key} = {value} asks for more. hint: leave {key} out, or take at most {most}"
            )
        asked[str(key)] = value
    return asked


class Gguf:
    """See `backends.backend.Backend`."""

    name = "gguf"
    files = "a GGUF file"
    kinds: Sequence[AnyKind] = OF_TEXT
    engine = "backends.gguf.loading:load"
    extra = "gguf"
    routes: Sequence[str] = ()
    dry: str | None = "backends.gguf.dryrun"
    baseline: str | None = "backends.gguf.bare"
    refuses: Mapping[str, str] = MappingProxyType(
        {
            "quantization": _AS_QUANTISED,
            "bnb_4bit_quant_type": _AS_QUANTISED,
            "bnb_4bit_use_double_quant": _AS_QUANTISED,
            "bnb_4bit_compute_dtype": _AS_QUANTISED,
            "llm_int8_threshold": _AS_QUANTISED,
            "llm_int8_skip_modules": _AS_QUANTISED,
            "trust_remote_code": "which brings no code",
        }
    )
    packages: Sequence[str] = ("llama-cpp-python",)
    components: Sequence[str] = ("draft", adapters.KEY)
    media: Sequence[MediaKind] = ("image", "audio")
    choices: Choices[Header, TextPlan] = TextChoices()
    speeds: Speeds[HeaderInfo, TextPlan] | None = GgufSpeeds()

    def options(self) -> type[Options]:
        """None."""
        from backends.gguf.options import GgufOptions

        return GgufOptions

    def recognise(self, path: Path) -> Files | None:
        """A file by its name or its first bytes, with its other parts."""
        if not path.is_file() or foreign.is_unfinished(path.name) or not is_gguf(path):
            return None
        return Files(split_parts(path), beside=candidates(path))

    def claims(self, reference: str) -> bool:
        """A name that ends in .gguf, or a reference with a quantisation: `org/repo:Q4_K_M`."""
        return reference.lower().endswith(".gguf") or ":" in reference.removeprefix("hf:")

    def describe(self, path: Path, options: Mapping[str, Setting]) -> HeaderInfo:
        """The file's header, of a split one all of them."""
        header = read(path)
        if (why := unservable(header)) is not None:
            raise HeaderError(f"the file {why}")
        if f"{header.architecture}.block_count" in header.metadata and header.n_layers < 1:
            raise HeaderError("the file announces 0 layers (block_count), and a model has layers. hint: it is damaged")
        _check_figures(header)
        asked = _host_layers(header, options)
        n_predicting = header.number("nextn_predict_layers") if header.gives == "text" and MTP in options else 0
        if options.get(MTP) is True and n_predicting != 1:
            has = f"{n_predicting} of them, and one is supported" if n_predicting else "none"
            raise HeaderError(
                f"speculation = 'mtp' is for files with a layer that predicts further tokens, and this one has {has}. "
                "hint: speculation = 'auto', or 'model:NAME' with a smaller model"
            )
        found = projector_for(path, header.number("embedding_length"), options) if header.gives == "text" else None
        return dataclasses.replace(
            header,
            expert_layers=asked.get("expert_layers"),
            ffn_layers=asked.get("ffn_layers"),
            projector=found,
            mtp=n_predicting == 1,
            draft=self._draft(options) if header.gives == "text" and not header.number("ssm.inner_size") else None,
            adapters=described(header, options),
        )

    @staticmethod
    def _draft(options: Mapping[str, Setting]) -> HeaderInfo | None:
        """The header of the model that drafts for one. Raises HeaderError."""
        if not isinstance(path := options.get(DRAFT), str):
            return None
        header = read(Path(path))
        if (why := unservable(header)) is not None:
            raise HeaderError(f"its draft model {why}")
        return header

    def plans(self, header: HeaderInfo, wish: Wish) -> Iterator[TextPlan]:
        """First less is kept in mind; then weights leave the card, those of which a token uses least first.

        A mixture of experts keeps the length of its context and moves experts; any model's whole layers leave last.
        """
        smaller: Iterator[TextPlan]
        if header.gives == "text":
            context = ladder.context_to_load(wish, trained=header.n_ctx_train)
            has_pool = header.number("attention.head_count") > 0
            takes_q8_0 = ladder.takes_q8_0(*header.head_sizes())
            first = ladder.first_plan(wish, context=context, kv_type=wish.kv_type)
            first = replace(first, kv_offload=wish.kv_offload if wish.device != "cpu" else "card")
            smaller = ladder.smaller_plans(first, wish, has_pool=has_pool, takes_q8_0=takes_q8_0)
        else:
            smaller = ladder.encoder_plans(wish, context=self.longest_context(header, wish.context))
        yield from offload.plans(header, wish, smaller)

    def longest_context(self, header: HeaderInfo, context: int | None) -> int:
        """Embedding models and rerankers read no more than they were trained for."""
        if header.gives != "text":
            most = ladder.AUTO_INPUT if header.wants_whole_inputs else AUTO_CONTEXT
            return ladder.longest_input(context, trained=header.n_ctx_train, most=most)
        return ladder.longest_context(context, trained=header.n_ctx_train)

    def estimate(self, header: HeaderInfo, plan: TextPlan) -> Footprint:
        """See `backends.gguf.arithmetic`."""
        return arithmetic.predict(header, plan)

    def card_share(self, header: HeaderInfo, plan: TextPlan) -> float:
        """As many as of the transformer blocks, unless the cache is kept in host memory."""
        return arithmetic.cache_share(header, plan)

    def runtime_bytes(self, header: HeaderInfo, plan: TextPlan) -> Amount:
        """Python with llama.cpp; on a card the driver's context and cuBLAS."""
        return RUNTIME_BYTES[plan.device]
