"""One answer of a server: asked for, shown as it comes, measured, and kept as far as it came."""

from __future__ import annotations

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from server.cli.chat.screen import waiting
from server.cli.console import CliError
from server.cli.following import waiting_in_words

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import FrameType

    from server.cli.chat.screen import Screen, Waiting
    from server.cli.client import Client


@dataclass
class Answer:
    """What came, also where it was stopped or broke off."""

    text: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    stopped: bool = False
    problem: CliError | None = None
    asked_at: float = 0.0
    first_at: float | None = None
    """When the first token came, reasoning included."""
    last_at: float = 0.0
    _first_chars: int = 0
    _chars: int = 0

    def came(self, text: str) -> None:
        """More of the answer or of its reasoning, now."""
        self.last_at = time.monotonic()
        self._chars += len(text)
        if self.first_at is None:
            self.first_at, self._first_chars = self.last_at, self._chars

    @property
    def tokens_per_s(self) -> float | None:
        """Of what came after the first piece, which may hold several tokens; None where that says nothing."""
        n_tokens = int(self.usage.get("completion_tokens") or 0)
        if self.first_at is None or self.last_at <= self.first_at:
            return None
        return n_tokens * (1 - self._first_chars / self._chars) / (self.last_at - self.first_at)

    def figures(self) -> str:
        """In one line: tokens, tokens per second, and how long the first one took."""
        told = []
        if "completion_tokens" in self.usage:
            told.append(f"{self.usage['completion_tokens']} tokens")
        if (rate := self.tokens_per_s) is not None:
            told.append(f"{rate:.1f} tokens/s")
        if self.first_at is not None:
            told.append(f"first after {self.first_at - self.asked_at:.2f} s")
        if self.finish_reason == "length":
            told.append("cut: no room for more (max_tokens or the context)")
        return ", ".join(told)

    def details(self) -> list[str]:
        """The same with what the prompt took, a line each."""
        prompt, cached = self.usage.get("prompt_tokens"), _within(self.usage, "prompt", "cached_tokens")
        reasoning = _within(self.usage, "completion", "reasoning_tokens")
        return [
            *([f"prompt: {prompt} tokens, {cached} of them cached"] if prompt is not None else []),
            f"answer: {self.figures()}",
            *([f"reasoning: {reasoning} tokens"] if reasoning else []),
            *([f"ended by: {self.finish_reason}"] if self.finish_reason else []),
        ]


def answered(client: Client, body: dict[str, Any], screen: Screen) -> Answer:
    """Ask and show. Whatever ends the answer, what came of it is returned: a stop and a failure stand in it."""
    answer = Answer(asked_at=time.monotonic())
    with waiting(f"waiting for {body['model']}") as wait:
        try:
            with _interrupted_once():
                _read(client, body, answer, screen, wait)
        except KeyboardInterrupt:
            answer.stopped = True
        except CliError as problem:
            answer.problem = problem
    screen.end()
    return answer


def _read(client: Client, body: dict[str, Any], answer: Answer, screen: Screen, wait: Waiting) -> None:
    def _on_comment(comment: str) -> None:
        if told := waiting_in_words(str(body["model"]), comment):
            wait.tell(told)

    with client.stream("/v1/chat/completions", body, on_comment=_on_comment) as documents:
        for document in documents:
            answer.usage = document.get("usage") or answer.usage
            choice = (document.get("choices") or [{}])[0]
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            _show(choice.get("delta") or {}, answer, screen, wait)


def _show(delta: dict[str, Any], answer: Answer, screen: Screen, wait: Waiting) -> None:
    reasoning, content = delta.get("reasoning_content"), delta.get("content")
    if not (reasoning or content):
        return
    answer.came((reasoning or "") + (content or ""))
    if reasoning and screen.sees_reasoning:
        wait.end()
        screen.reasoning(reasoning)
    elif reasoning:
        wait.tell("thinking")
    if content:
        wait.end()
        answer.text += content
        screen.content(content)


def _within(usage: dict[str, Any], side: str, name: str) -> int:
    return int((usage.get(f"{side}_tokens_details") or {}).get(name) or 0)


@contextmanager
def _interrupted_once() -> Generator[None, None, None]:
    """The first Ctrl-C ends what is within; one more must not cut its end short."""

    def _once(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, _once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
