"""Passes for which PyTorch finds no memory: how long the next ones are, and what is held of them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.bnb.loading import load
from tests.models import canary_kv
from tests.specs import spec_of

pytestmark = pytest.mark.engine

MORE_THAN_THERE_IS = 2**50


@dataclass
class Hungry:
    """A model's passes, of which some ask PyTorch for more memory than any machine has."""

    context: Any
    too_much: Callable[[int], bool] = lambda _: False
    """Of so many tokens."""
    passes: list[tuple[int, bool]] = field(default_factory=list)
    """Tokens, and whether there was memory for them."""
    scratch: weakref.ref[torch.Tensor] | None = None
    """What the last pass had taken before it asked for more."""

    def __call__(self, _model: Any, _args: Any, given: dict[str, Any]) -> None:
        n_tokens = given["position_ids"].numel()
        taken = torch.zeros(n_tokens)
        self.scratch = weakref.ref(taken)
        fits = not self.too_much(n_tokens)
        self.passes.append((n_tokens, fits))
        if not fits:
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)

    def decode(self, n_tokens: int) -> list[tuple[int, bool]]:
        """The passes that a prompt of so many tokens took."""
        self.passes.clear()
        context = self.context
        context.tokens[:n_tokens] = canary_kv.prompt(1, n_tokens)
        context.positions[:n_tokens] = range(n_tokens)
        context.sequences[:n_tokens] = context.outputs[:n_tokens] = 0
        context.outputs[n_tokens - 1] = 1
        assert context.decode(n_tokens) == 0
        context.clear(0)
        return self.passes[:]


@pytest.fixture
def hungry(tmp_path: Path) -> Iterator[Hungry]:
    folder = canary_kv.build_folder(tmp_path / "model")
    engine: Any = load(spec_of("kv", "bnb", str(folder), context=512, parallel=1, threads=1), lambda _: None)
    found = Hungry(engine._context)
    engine._context._runner._model.register_forward_pre_hook(found, with_kwargs=True)
    yield found
    engine.close()


def test_a_few_tokens_that_do_not_fit_make_no_later_pass_shorter(hungry: Hungry) -> None:
    hungry.too_much = lambda n: n > 32
    assert hungry.decode(64) == [(64, False), (32, True), (32, True)]

    hungry.too_much = lambda n: n == 3
    assert hungry.decode(35) == [(32, True), (3, False), (1, True), (1, True), (1, True)]

    assert hungry.decode(64) == [(32, True), (32, True)]


def test_a_cards_memory_is_given_back_when_nothing_of_the_failed_pass_holds_it(
    hungry: Hungry, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: held.append(hungry.scratch()))  # type: ignore[misc]
    hungry.too_much = lambda n: n > 32

    hungry.decode(64)

    assert held == [None]
