"""The adapters of one loaded model, as its engine knows them: which there are, and what their jobs must not share."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import msgspec

from backends.engine import not_served

if TYPE_CHECKING:
    from collections.abc import Mapping

    from backends.messages import Generate


@dataclass(frozen=True)
class LoadedAdapters:
    """By name: what tells an adapter's files from others, and why one that is configured is not served."""

    identities: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def told(self) -> dict[str, str]:
        """All that are configured; empty text where nothing speaks against one."""
        return {**dict.fromkeys(self.identities, ""), **self.refused}

    def own(self, job: Generate) -> Generate:
        """The job in its adapter's own domain of cached prefixes: keys and values are of the weights that made them.

        Raises JobError for an adapter that is not served.
        """
        if not job.adapter:
            return job
        if job.adapter not in self.identities:
            raise not_served(job.adapter, self.refused.get(job.adapter))
        domain = f"{job.cache_domain}\0{job.adapter}\0{self.identities[job.adapter]}"
        return msgspec.structs.replace(job, cache_domain=domain)


NO_ADAPTERS: Final = LoadedAdapters()
NO_NUMBERS: Final = "what it computes are no numbers (NaN or infinite). hint: its training has diverged"
"""Why an adapter is refused whose first pass shows it."""
