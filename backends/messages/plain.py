"""What every message is: a frozen struct with named fields, and no others."""

from __future__ import annotations

import msgspec


class Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the immutable messages."""
