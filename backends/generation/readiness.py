"""What a loaded model that generates text tells of itself, and where it finds prompts that were computed before."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from backends.capabilities import of_text
from backends.messages import GeneratorFacts, Ready
from backends.prefix.entry_files import EntryFolder
from backends.prefix.store import PrefixStore

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from backends.generation.tokenizer import Tokenizer
    from backends.messages import GeneratorPlan, Layers, MediaKind, Store


def describe(
    plan: GeneratorPlan,
    tokenizer: Tokenizer,
    *,
    n_ctx_train: int,
    n_vocab: int,
    layers: Layers,
    parts: dict[str, int] | None,
    host_parts: dict[str, int],
    engine: str,
    speculation: str,
    media: Sequence[MediaKind] = (),
    adapters: Mapping[str, str] = MappingProxyType({}),
) -> Ready[GeneratorFacts]:
    """The model's `Ready`; `parts` are measured bytes by component, None where that cannot be told.

    `host_parts` are those of host memory beside a card.
    """
    template = tokenizer.tool_template
    facts = GeneratorFacts(
        context=plan.context,
        n_ctx_train=n_ctx_train,
        n_vocab=n_vocab,
        tool_format=template.format.name if template else None,
        reasoning_marks=template.marks if template else None,
        template_options=template.options if template else [],
        kv_type=plan.kv_type,
        speculation=speculation,
        adapters=dict(adapters),
    )
    return Ready(
        facts=facts,
        parallel=plan.parallel,
        layers=layers,
        measured_bytes=sum(parts.values()) if parts is not None else 0,
        parts=parts or {},
        host_parts=host_parts,
        capabilities=of_text(template.source if template else None, infills=tokenizer.can_infill, media=media),
        engine=engine,
    )


@contextmanager
def making_guides(tokenizer: Tokenizer) -> Iterator[None]:
    """Make what constraints need beside the body, which waits for its library; both are done at the end.

    llguidance takes 0.15 s for 128 000 tokens, in which Python does nothing else: a loaded model's streams would stop.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="guides") as beside:
        made = beside.submit(tokenizer.guides.warm)
        yield
    made.result()


def open_store(
    store: Store | None, ready: Ready[GeneratorFacts], *, identity: str
) -> tuple[PrefixStore | None, Ready[GeneratorFacts]]:
    """What is kept of cached prefixes, with what the last worker of this very model left; None without a folder.

    `Ready` says so where a folder cannot be used, which costs computing, not the model.
    """
    if store is None:
        return None, ready
    try:
        folder = EntryFolder(Path(store.folder), checked=False)
        disk = EntryFolder(Path(store.disk_folder), checked=True) if store.disk_folder else None
        kept = PrefixStore(folder, store.max_bytes, identity=identity, disk=disk, disk_bytes=store.disk_bytes)
    except OSError as error:
        facts = msgspec.structs.replace(ready.facts, store_error=str(error))
        return None, msgspec.structs.replace(ready, facts=facts)
    return kept, ready
