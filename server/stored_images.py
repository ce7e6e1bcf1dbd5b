"""Images that clients fetch by an address instead of reading them from the answer: bounded, and gone after a while.

Pure but for its own state: time is an argument. An address cannot be guessed; who has it needs no key, as a browser
that shows an image sends none.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TTL_S: Final = 3600.0
"""As OpenAI's addresses."""
MAX_BYTES: Final = 64 * 2**20
"""Of all images together, or what one answer has; the oldest go first."""


@dataclass(frozen=True)
class StoredImage:
    """One file."""

    data: bytes
    media_type: str
    until_s: float


class StoredImages:
    """Those of one server. Times in seconds of one clock."""

    def __init__(self, *, max_bytes: int = MAX_BYTES, ttl_s: float = TTL_S) -> None:
        self._max_bytes = max_bytes
        self._ttl_s = ttl_s
        self._images: OrderedDict[str, StoredImage] = OrderedDict()
        self.n_bytes = 0

    def put(self, files: Mapping[str, bytes], media_type: str, now: float) -> None:
        """Keep the images of one answer, by their names; others leave for them, and none of them for another."""
        self._expire(now)
        for name, data in files.items():
            self._images[name] = StoredImage(data, media_type, now + self._ttl_s)
            self.n_bytes += len(data)
        while self.n_bytes > self._max_bytes and len(self._images) > len(files):
            self._drop_first()

    def get(self, name: str, now: float) -> StoredImage | None:
        """The image of that name, while it is there."""
        self._expire(now)
        return self._images.get(name)

    def _expire(self, now: float) -> None:
        while self._images and next(iter(self._images.values())).until_s <= now:
            self._drop_first()

    def _drop_first(self) -> None:
        _, gone = self._images.popitem(last=False)
        self.n_bytes -= len(gone.data)
