"""What every message is: a frozen struct with named fields, and no others."""

from __future__ import annotations

import msgspec

Figure = int | float | str | bool
"""What is told of a model or a plan by a name."""


class Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the immutable messages."""
