"""Hugging Face folders through transformers and bitsandbytes, as `backends.backend.Backend` asks for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from backends import ladder
from backends.backend import DRAFT, MTP, Files, HeaderError, Setting
from backends.bnb import arithmetic, folder, tokenizer_file
from backends.bnb.adapters import described
from backends.bnb.header import FolderInfo, read
from backends.bnb.servable import unservable
from backends.bnb.speed import FolderSpeeds
from backends.engine import LoadError
from backends.files import adapters, model_files
from backends.kinds import OF_TEXT, AnyKind
from backends.plan import AUTO_CONTEXT, Amount, Footprint, Wish
from backends.text_choices import TextChoices

if TYPE_CHECKING:
    from backends.backend import Header
    from backends.choices import Choices
    from backends.messages import MediaKind, TextPlan
    from backends.options import Options
    from backends.speed import Speeds


class Folders:
    """See `backends.backend.Backend`."""

    name = "bnb"
    files = "a model folder"
    kinds: Sequence[AnyKind] = OF_TEXT
    engine = "backends.bnb.loading:load"
    extra = "bnb"
    routes: Sequence[str] = ()
    dry: str | None = None
    baseline: str | None = None
    refuses: Mapping[str, str] = MappingProxyType(
        {
            "kv_type": "whose KV cache has the type it computes in",
            "kv_offload": "whose KV cache lies where it computes",
            "gpu_layers": "whose layers are all on one device",
        }
    )
    packages: Sequence[str] = ("bitsandbytes", "transformers", "torch")
    components: Sequence[str] = ("draft", adapters.KEY)
    media: Sequence[MediaKind] = ("image",)
    choices: Choices[Header, TextPlan] = TextChoices()
    speeds: Speeds[FolderInfo, TextPlan] | None = FolderSpeeds()

    def options(self) -> type[Options]:
        """How bitsandbytes loads."""
        from backends.bnb.options import FolderOptions

        return FolderOptions

    def recognise(self, path: Path) -> Files | None:
        """A folder with the config.json of transformers."""
        if not path.is_dir():
            return None
        config = path / "config.json"
        if (strange := model_files.why_not_file(config)) is not None:
            raise HeaderError(f"{path} holds a config.json that {strange}")
        if not config.is_file():
            return None
        return Files(tuple(sorted(file for file in path.glob("*.safetensors") if file.is_file())))

    def claims(self, reference: str) -> bool:
        """Any that has no ending of a file."""
        return True

    def describe(self, path: Path, options: Mapping[str, Setting]) -> FolderInfo:
        """config.json, the weights' headers, and that nothing in the folder asks for what it may not have."""
        header = read(path, str(options.get("quantization", "none")), options)
        runs_code = options.get("trust_remote_code") is True
        try:
            config = folder.check(path, trust_remote_code=runs_code)
            tokenizer_file.check(path)
        except LoadError as error:
            raise HeaderError(error.message) from None
        if (why := unservable(header, config, runs_code=runs_code)) is not None:
            raise HeaderError(why)
        taught = described(header, options)
        header = dataclasses.replace(header, adapters=taught, remarks=(*header.remarks, *adapters.remarks(taught)))
        if options.get(MTP) is True:
            raise HeaderError(
                "speculation = 'mtp' is for GGUF files: transformers does not load such a layer of a folder. "
                "hint: speculation = 'auto', or 'model:NAME' with a smaller model"
            )
        if not isinstance(draft := options.get(DRAFT), str) or header.gives != "text":
            return header
        try:
            found = read(Path(draft), str(options.get(f"{DRAFT}.quantization", "none")))
        except HeaderError as error:
            raise HeaderError(f"its draft model: {error}") from None
        return dataclasses.replace(header, draft=found)

    def plans(self, header: FolderInfo, wish: Wish) -> Iterator[TextPlan]:
        """The KV cache has the type that is computed in, and all layers are on one device."""
        if header.gives != "text":
            yield from ladder.encoder_plans(wish, context=self.longest_context(header, wish.context))
            return
        context = ladder.context_to_load(wish, trained=header.n_ctx_train)
        plan = ladder.first_plan(wish, context=context, kv_type=arithmetic.computed_type(header, wish.device))
        yield from ladder.smaller_plans(plan, wish, has_pool=True, takes_q8_0=False)

    def longest_context(self, header: FolderInfo, context: int | None) -> int:
        """Embedding models and rerankers read no more than they were trained for."""
        if header.gives != "text":
            return ladder.longest_input(context, trained=header.n_ctx_train, most=AUTO_CONTEXT)
        return ladder.longest_context(context, trained=header.n_ctx_train)

    def estimate(self, header: FolderInfo, plan: TextPlan) -> Footprint:
        """See `backends.bnb.arithmetic`."""
        return arithmetic.predict(header, plan)

    def card_share(self, header: FolderInfo, plan: TextPlan) -> float:
        """All of them or none."""
        return 1.0 if plan.device == "cuda" else 0.0

    def runtime_bytes(self, header: FolderInfo, plan: TextPlan) -> Amount:
        """Python with PyTorch; on a card the driver's context and cuBLAS."""
        return arithmetic.RUNTIME_BYTES[plan.device]
