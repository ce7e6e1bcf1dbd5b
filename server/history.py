"""The responses and threads that clients may refer to later: bounded in number, bytes and age, in memory only.

Pure but for its own state: time is an argument. Records are bytes, so what they take is known.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

Kind = Literal["response", "thread"]


@dataclass(frozen=True)
class Record:
    """One stored response, or one thread as its last message left it; the fields are JSON."""

    id: str
    domain: str
    """Whose it is: no other key finds it."""
    response: bytes
    """The response object as it was sent."""
    inputs: bytes
    """Its own input items, with ids."""
    turns: bytes
    """The whole conversation as chat messages, this answer last, without instructions."""
    item_ids: tuple[str, ...] = ()
    kind: Kind = "response"
    """Which surface may refer to it."""

    @property
    def n_bytes(self) -> int:
        """What it takes, without Python's own overhead of about a kilobyte."""
        return len(self.response) + len(self.inputs) + len(self.turns)


class History:
    """The least recently used go first; `max_count` 0 keeps nothing. Times in seconds of one clock."""

    def __init__(self, *, max_count: int, max_bytes: int, ttl_s: float) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._records: OrderedDict[str, tuple[Record, float]] = OrderedDict()
        self._by_item: dict[str, str] = {}
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record, now: float) -> bool:
        """Keep a response; False where it alone is larger than everything that may be kept."""
        if record.n_bytes > self._max_bytes or self._max_count == 0:
            return False
        self._drop(record.id)
        self._records[record.id] = (record, now + self._ttl_s)
        self._by_item |= dict.fromkeys(record.item_ids, record.id)
        self.n_bytes += record.n_bytes
        while self.n_bytes > self._max_bytes or len(self._records) > self._max_count:
            self._drop(next(iter(self._records)))
        self._expire(now)
        return True

    def get(self, response_id: str, domain: str, now: float, *, kind: Kind = "response") -> Record | None:
        """What was stored under this id by this domain; using it keeps it."""
        self._expire(now)
        found = self._records.get(response_id)
        if found is None or (found[0].domain, found[0].kind) != (domain, kind):
            return None
        self._records[response_id] = (found[0], now + self._ttl_s)
        self._records.move_to_end(response_id)
        return found[0]

    def holder(self, item_id: str, domain: str, now: float) -> Record | None:
        """The response that an item belongs to."""
        response_id = self._by_item.get(item_id)
        return None if response_id is None else self.get(response_id, domain, now)

    def delete(self, response_id: str, domain: str, now: float) -> bool:
        """Forget a response; False where there is none."""
        if self.get(response_id, domain, now) is None:
            return False
        self._drop(response_id)
        return True

    def _expire(self, now: float) -> None:
        """The order of use is the order of expiry, because using a record renews it."""
        while self._records and next(iter(self._records.values()))[1] <= now:
            self._drop(next(iter(self._records)))

    def _drop(self, response_id: str) -> None:
        found = self._records.pop(response_id, None)
        if found is not None:
            self.n_bytes -= found[0].n_bytes
            for item_id in found[0].item_ids:
                if self._by_item.get(item_id) == response_id:
                    del self._by_item[item_id]
