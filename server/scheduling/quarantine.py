"""When a model that keeps failing is left alone: after three failures in a minute with nothing good between. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class QuarantineRules:
    """How many failures in what time are too many, and how long the pauses are, in seconds."""

    failures: int = 3
    window_s: float = 60.0
    first_pause_s: float = 15.0
    longest_pause_s: float = 300.0


@dataclass
class Quarantine:
    """The failures of one model.

    After a pause the next request tries once; a failure then doubles the pause. A finished job forgives everything,
    so that one poisonous request among good ones does not take the model from all clients.
    """

    rules: QuarantineRules
    until: float = float("-inf")
    """On the caller's clock; in the past when the model may be tried."""
    clean: bool = True
    """Nothing has failed since the last job that was done."""
    _failed_at: list[float] = field(default_factory=list)
    _n_pauses: int = 0

    def active(self, now: float) -> bool:
        """Whether the model is left alone now."""
        return now < self.until

    def forgive(self) -> None:
        """The model has done its job: what was before does not count."""
        self._failed_at.clear()
        self._n_pauses = 0
        self.clean = True

    def lift(self) -> None:
        """The model's files are other ones now: what these failed at says nothing of them."""
        self.until = float("-inf")
        self.forgive()

    def strike(self, now: float) -> bool:
        """Count a failure; True when it starts a pause."""
        rules = self.rules
        self.clean = False
        self._failed_at = [at for at in self._failed_at if now - at <= rules.window_s] + [now]
        on_probation = self._n_pauses > 0
        if not on_probation and len(self._failed_at) < rules.failures:
            return False
        self.until = now + min(rules.first_pause_s * 2**self._n_pauses, rules.longest_pause_s)
        self._n_pauses += 1
        self._failed_at.clear()
        return True
