"""config.json with its types checked: a wrong or missing value is a sentence that names the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quantize.errors import QuantizeError
from quantize.words import shown

MAX_INT = 2**31 - 1


@dataclass(frozen=True)
class Config:
    """Typed reading of a table; keys may be given with older spellings after them."""

    values: Mapping[str, Any]

    def integer(self, *keys: str, default: int | None = None, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self._first(keys)
        if value is None:
            if default is None:
                raise QuantizeError(f"config.json has no {keys[0]}")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= MAX_INT:
            raise QuantizeError(f"{keys[0]} in config.json is {shown(str(value))}, not a whole number from {least}")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._first(keys)
        if value is None:
            if default is None:
                raise QuantizeError(f"config.json has no {keys[0]}")
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30 or value != value:
            raise QuantizeError(f"{keys[0]} in config.json is {shown(str(value))}, not a number")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """A truth value."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise QuantizeError(f"{key} in config.json is {shown(str(value))}, not true or false")
        return value

    def text(self, *keys: str, default: str = "") -> str:
        """A string."""
        value = self._first(keys)
        if value is None:
            return default
        if not isinstance(value, str):
            raise QuantizeError(f"{keys[0]} in config.json is {shown(str(value))}, not a text")
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of numbers; empty where it is not there."""
        value = self.values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(n, int | float) for n in value):
            raise QuantizeError(f"{key} in config.json is not a list of numbers")
        return [float(n) for n in value]

    def table(self, key: str) -> Config:
        """A table inside; empty where it is not there."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise QuantizeError(f"{key} in config.json is not a table")
        return Config(value or {})

    def require(self, key: str, *allowed: object) -> None:
        """Refuse a value that llama.cpp would compute otherwise; an absent one counts as allowed."""
        value = self.values.get(key)
        if value is not None and value not in allowed:
            raise QuantizeError(
                f"{key} is {shown(str(value))} in config.json; llama.cpp computes only "
                f"{' or '.join(str(one) for one in allowed)} for this architecture"
            )

    def _first(self, keys: tuple[str, ...]) -> Any:
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    @property
    def n_layers(self) -> int:
        """Transformer blocks."""
        return self.integer("num_hidden_layers", "n_layer")

    @property
    def n_heads(self) -> int:
        """Attention heads."""
        return self.integer("num_attention_heads", "n_head")

    @property
    def n_embd(self) -> int:
        """Width of the model."""
        return self.integer("hidden_size", "n_embd")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.integer("head_dim", default=self.n_embd // self.n_heads)
