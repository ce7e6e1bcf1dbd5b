"""Which weights leave a card that is too small: experts, feed-forward weights, whole layers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec.structs import replace

from backends.messages import GeneratorPlan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from backends.gguf.info import HeaderInfo
    from backends.messages import TextPlan
    from backends.plan import Wish

Kind = Literal["expert_layers", "ffn_layers"]
KINDS: Final[tuple[Kind, ...]] = ("expert_layers", "ffn_layers")


def plans(header: HeaderInfo, wish: Wish, smaller: Iterable[TextPlan]) -> Iterator[TextPlan]:
    """The smaller plans on the card, and those with less and less of the weights on it.

    Experts leave before the context gets shorter than it was: a token uses few of them. The others leave after it.
    """
    plan: TextPlan | None = None
    moved = 0
    for following in (_fixed(header, wish, plan) for plan in smaller):
        if plan is not None and following.context < plan.context:
            for offloaded in _more(header, wish, plan, "expert_layers"):
                moved, plan = _count(offloaded, "expert_layers"), offloaded
                yield offloaded
        plan = replace(following, expert_layers=moved) if moved and isinstance(following, GeneratorPlan) else following
        yield plan
    if plan is None:
        return
    for kind in KINDS:
        for offloaded in _more(header, wish, plan, kind):
            plan = offloaded
            yield offloaded
    if wish.device == "cuda" and wish.gpu_layers is None:
        for n_layers in range(header.n_layers, 0, -1):
            yield replace(plan, gpu_layers=n_layers)


def _fixed(header: HeaderInfo, wish: Wish, plan: TextPlan) -> TextPlan:
    """With what the operator has said."""
    if not isinstance(plan, GeneratorPlan) or wish.device == "cpu":
        return plan
    return replace(plan, expert_layers=header.expert_layers or 0, ffn_layers=header.ffn_layers or 0)


def _more(header: HeaderInfo, wish: Wish, plan: TextPlan, kind: Kind) -> Iterator[GeneratorPlan]:
    """The plan with one more layer of a kind in host memory each time; none where the operator has chosen."""
    if not isinstance(plan, GeneratorPlan) or wish.device == "cpu" or wish.gpu_layers is not None:
        return
    if (header.expert_layers if kind == "expert_layers" else header.ffn_layers) is not None:
        return
    for n_layers in range(_count(plan, kind) + 1, header.host_layers(kind) + 1):
        yield replace(plan, **{kind: n_layers})


def _count(plan: GeneratorPlan, kind: Kind) -> int:
    return plan.expert_layers if kind == "expert_layers" else plan.ffn_layers
