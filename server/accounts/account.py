"""One key's name, limits and present use: what is let in, what it costs, and the headers that tell of it.

Owns the sentences of a limit that is reached. For the event loop's thread only; every `now` is in seconds on one
monotonic clock.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, Protocol

from server.accounts.bucket import Bucket
from server.errors import ApiError

ANONYMOUS: Final = "anonymous"
"""Requests of a server without keys."""
PLAIN: Final = "api_keys"
ADMINS: Final = "admin_keys"
"""Keys without a name, all together."""
RESERVED: Final = (ANONYMOUS, PLAIN, ADMINS, "admin")
BYTES_PER_TOKEN: Final = 4
"""Of a prompt that was not read yet."""
LIMIT_REACHED: Final = "Rate limit reached"
"""How the sentence of every limit of a key begins, and no other 429."""
Reason = Literal["requests", "tokens", "concurrent", "model"]
REASONS: Final[tuple[Reason, ...]] = ("requests", "tokens", "concurrent", "model")


@dataclass(frozen=True)
class KeyLimits:
    """What one key may do; None: without a limit."""

    models: tuple[str, ...] = ()
    """Names, aliases or patterns; none: every model."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    priority: int = 0


@dataclass(frozen=True)
class Spent:
    """What one job has cost."""

    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Watcher(Protocol):
    """Who counts what accounts do."""

    def request(self, key_name: str) -> None:
        """A request was let in."""
        ...

    def refused(self, key_name: str, reason: Reason) -> None:
        """A request was not."""
        ...

    def spent(self, key_name: str, spent: Spent) -> None:
        """A job has ended."""
        ...


class Account:
    """Of one name; several keys may share it, and it outlives a reload of the configuration."""

    def __init__(self, name: str, limits: KeyLimits, now: float, watchers: Iterable[Watcher] = ()) -> None:
        self.name = name
        self.limits = limits
        self.running = 0
        """Requests that were let in and have not ended."""
        self._watchers = tuple(watchers)
        self._requests = _bucket(None, limits.requests_per_minute, now)
        self._tokens = _bucket(None, limits.tokens_per_minute, now)

    def change(self, limits: KeyLimits, now: float) -> None:
        """Other limits; what was used under the old ones stays used."""
        self._requests = _bucket(self._requests, limits.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, limits.tokens_per_minute, now)
        self.limits = limits

    @property
    def limited(self) -> bool:
        """Whether answers tell of a limit per minute."""
        return self._requests is not None or self._tokens is not None

    # Requests

    def admit(self, now: float) -> Admission:
        """Let a request in, which `leave` follows. Raises ApiError 429 where a limit is reached."""
        most = self.limits.max_concurrent
        if most is not None and self.running >= most:
            noun = "request" if most == 1 else "requests"
            told = f"the key '{self.name}' may have {most} {noun} at once, and has {self.running}."
            raise self._over("concurrent", told, 1.0, now)
        if self._requests is not None and (wait_s := self._requests.wait_s(now)) > 0:
            told = f"the key '{self.name}' has a limit of {self._requests.per_minute} requests per minute (RPM)."
            raise self._over("requests", told, wait_s, now)
        self.refuse_without_tokens(now)
        if self._requests is not None:
            self._requests.take(1, now)
        self.running += 1
        for watcher in self._watchers:
            watcher.request(self.name)
        return Admission(self)

    def leave(self) -> None:
        """A request that was let in has ended."""
        self.running -= 1

    def may_use(self, names: Iterable[str]) -> bool:
        """Whether the model of these names (its own and its aliases) is one of this key's."""
        patterns = self.limits.models
        return not patterns or any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns)

    def refused_model(self) -> None:
        """A request has named a model that is none of this key's."""
        for watcher in self._watchers:
            watcher.refused(self.name, "model")

    # Tokens

    def refuse_without_tokens(self, now: float) -> None:
        """Raises ApiError 429 where none is left of this minute's."""
        if self._tokens is None or (wait_s := self._tokens.wait_s(now)) <= 0:
            return
        used, most = self._tokens.per_minute - math.floor(self._tokens.left(now)), self._tokens.per_minute
        told = f"the key '{self.name}' has a limit of {most} tokens per minute (TPM), and has used {used}."
        raise self._over("tokens", told, wait_s, now)

    def reserve(self, prompt_bytes: int, max_tokens: int, now: float) -> int:
        """Tokens that a job is taken to cost until it ends, at most a whole minute's; 0 where nothing is limited."""
        if self._tokens is None:
            return 0
        reserved = min(self._tokens.per_minute, prompt_bytes // BYTES_PER_TOKEN + max_tokens)
        self._tokens.take(reserved, now)
        return reserved

    def settle(self, reserved: int, spent: Spent, now: float) -> None:
        """A job has ended: what it cost counts, and not what was reserved for it."""
        if self._tokens is not None:
            self._tokens.take(spent.prompt_tokens + spent.completion_tokens - reserved, now)
        self.count(spent)

    def count(self, spent: Spent) -> None:
        """A job has ended that no limit holds up: it is usage, and takes nothing from a limit."""
        for watcher in self._watchers:
            watcher.spent(self.name, spent)

    # What clients are told

    def headers(self, now: float, *, anthropic: bool = False) -> dict[str, str]:
        """The limits per minute as OpenAI's clients find them, or as Anthropic's do."""
        found: dict[str, str] = {}
        for noun, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is None:
                continue
            left, full_s = max(0, math.floor(bucket.left(now))), bucket.full_in_s(now)
            if anthropic:
                at = datetime.now(UTC) + timedelta(seconds=full_s)
                figures = {"limit": bucket.per_minute, "remaining": left, "reset": at.strftime("%Y-%m-%dT%H:%M:%SZ")}
                found |= {f"anthropic-ratelimit-{noun}-{name}": str(value) for name, value in figures.items()}
            else:
                figures = {"limit": bucket.per_minute, "remaining": left, "reset": duration(full_s)}
                found |= {f"x-ratelimit-{name}-{noun}": str(value) for name, value in figures.items()}
        return found

    def _over(self, reason: Reason, told: str, wait_s: float, now: float) -> ApiError:
        for watcher in self._watchers:
            watcher.refused(self.name, reason)
        return ApiError(
            429,
            f"{LIMIT_REACHED}: {told} Please try again in {duration(wait_s)}.",
            type="tokens" if reason == "tokens" else "requests",
            code="rate_limit_exceeded",
            headers={"retry-after": str(max(1, math.ceil(wait_s))), "retry-after-ms": str(math.ceil(wait_s * 1000))},
        )


class Admission:
    """A request that was let in. Its body may take long to come, and others may take the tokens meanwhile."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._begun = False

    def reserve(self, prompt_bytes: int, max_tokens: int, now: float) -> int:
        """As the account does, for each of its jobs. Raises ApiError 429 at the first one where no token is left."""
        if not self._begun:
            self._account.refuse_without_tokens(now)
        self._begun = True
        return self._account.reserve(prompt_bytes, max_tokens, now)


def _bucket(before: Bucket | None, per_minute: int | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    return Bucket(per_minute, now) if before is None else before.resized(per_minute, now)


def duration(seconds: float) -> str:
    """As OpenAI writes it: `120ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{math.ceil(seconds * 10) / 10:g}s"
    whole = math.ceil(seconds)
    return f"{whole // 60}m{whole % 60}s"
