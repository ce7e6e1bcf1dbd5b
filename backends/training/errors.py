"""What ends a training job for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from backends.messages.training import TrainFailure


class TrainError(Exception):
    """The job cannot go on; the message says what happened and what to do."""

    def __init__(self, code: TrainFailure, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
