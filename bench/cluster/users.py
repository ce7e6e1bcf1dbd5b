"""What users of a cluster ask for: conversations with models of their own choice, seeded, or read from a file."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GIB: Final = 2**30
SIZES_GIB: Final = (4.9, 2.3, 6.6, 9.2, 1.4, 5.6, 3.1, 7.9, 4.2, 2.0)
"""Of models in turn: 1B to 14B in four bits with their KV cache."""
_ZIPF: Final = 0.9
_TURNS: Final = 5.0
_SYSTEM: Final = (600, 0.9)
_SAID: Final = (60, 1.0)
_ANSWER: Final = (180, 0.8)
"""Median and sigma of tokens, log-normal: of the system prompt with its tools, of what a user says, of an answer."""
_THINK_S: Final = (20.0, 0.9)
_SECOND_CHOICE: Final = 0.3


@dataclass(frozen=True)
class Turn:
    """One request: `new_tokens` of its prompt were in no earlier one of the conversation."""

    model: str
    conversation: str
    prompt_tokens: int
    new_tokens: int
    answer_tokens: int
    think_s: float
    """Until it is asked, after the answer before."""


@dataclass(frozen=True)
class Model:
    """A model of the cluster's configuration."""

    name: str
    needs_bytes: int
    parallel: int = 4


def models(count: int) -> list[Model]:
    """So many, the most popular first."""
    return [Model(f"m{i:02d}", round(SIZES_GIB[i % len(SIZES_GIB)] * GIB)) for i in range(count)]


def users(count: int, names: Sequence[str], seed: int) -> list[Iterator[Turn]]:
    """Endless users, each with a favourite among the models and another one now and then."""
    weights = [1 / (place + 1) ** _ZIPF for place in range(len(names))]
    return [_user(number, names, weights, random.Random(f"{seed}:{number}")) for number in range(count)]


def _user(number: int, names: Sequence[str], weights: Sequence[float], chance: random.Random) -> Iterator[Turn]:
    favourites = [chance.choices(names, weights)[0], chance.choices(names, weights)[0]]
    talk = 0
    while True:
        talk += 1
        model = favourites[chance.random() < _SECOND_CHOICE]
        held, new = 0, _tokens(chance, _SYSTEM)
        for _ in range(1 + int(chance.expovariate(1 / (_TURNS - 1)))):
            new += _tokens(chance, _SAID)
            answer = _tokens(chance, _ANSWER)
            think_s = _THINK_S[0] * math.exp(chance.gauss(0, _THINK_S[1]))
            yield Turn(model, f"u{number}c{talk}", held + new, new, answer, think_s)
            held, new = held + new + answer, 0


def _tokens(chance: random.Random, shape: tuple[float, float]) -> int:
    return max(1, round(shape[0] * math.exp(chance.gauss(0, shape[1]))))


def read(path: Path) -> list[Iterator[Turn]]:
    """Users of a trace: a JSON object per line with the fields of `Turn` and `user`; each user's in order, once."""
    found: dict[str, list[Turn]] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            fields = json.loads(line)
            found.setdefault(str(fields.pop("user")), []).append(Turn(**fields))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SystemExit(
                f"{path}, line {number}: {error}. hint: user and the fields of bench.cluster.users.Turn"
            ) from None
    return [iter(turns) for turns in found.values()]
