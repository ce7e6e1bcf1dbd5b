"""What can be chosen of a model's plans: their figures, other plans that fit, and what to give up for one that fits.

Each backend has its own (`Backend.choices`). Those of models that read text are in `backends.text_choices`. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from backends.messages import Figure, LoadPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from backends.plan import Amount, Footprint

HeaderT = TypeVar("HeaderT", contravariant=True)
PlanT = TypeVar("PlanT", bound=LoadPlan)


class Choices(Protocol[HeaderT, PlanT]):
    """Of the plans of one backend."""

    def figures(self, header: HeaderT, plan: PlanT) -> Mapping[str, Figure]:
        """What a plan is, by the names of configuration and of `/v1/capacity`; empty where nothing can be chosen."""
        ...

    def others(
        self, header: HeaderT, plan: PlanT, room: Amount, footprint_of: Callable[[PlanT], Footprint], *, fits: bool
    ) -> Sequence[PlanT]:
        """Other plans that fit into the room, each as large as it can be, best first; `fits`: the plan itself does."""
        ...

    def instead(self, plan: PlanT, room: Amount, footprint_of: Callable[[PlanT], Footprint]) -> Sequence[str]:
        """What to configure so that a plan fits which does not, `context 4096`: what is missed least first."""
        ...
