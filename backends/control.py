"""A control token, as prompts see it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Control:
    """A token that only a template or a raw prompt may write: its id, its literal, and the white space it swallows."""

    token: int
    literal: str
    strips_left: bool
    strips_right: bool
