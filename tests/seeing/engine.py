"""The engine of the tests with one more sense: its answer is what the messages hold, in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from backends.engine import JobError
from backends.messages import ChatPrompt, Event, Generate, Job, LoadModel, Medium, Ready, TextPrompt, Tokenize
from tests.fakes import engine as fake


def load(spec: LoadModel, progress: Callable[[float], None]) -> fake.FakeEngine:
    return Seer(spec, 1 << 20) if spec.backend == "seer" else fake.load(spec, progress)


class Seer(fake.FakeEngine):
    """Sees."""

    def ready(self) -> Ready:
        ready = super().ready()
        return replace(ready, capabilities=[*ready.capabilities, "vision"])

    def prepare(self, job: Job) -> fake.FakePrepared | list[Event]:
        if isinstance(job, Generate | Tokenize) and isinstance(job.prompt, ChatPrompt):
            prompt = job.prompt
            said = [_said(message, prompt.media) for message in prompt.messages]
            return super().prepare(replace(job, prompt=TextPrompt("!say " + " / ".join(said))))
        return super().prepare(job)


def _said(message: dict[str, Any], media: list[Medium]) -> str:
    content = message.get("content") or ""
    parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    words = [_seen(media[part["medium"]]) if part["type"] == "medium" else part["text"] for part in parts]
    return f"{message['role']}: {' '.join(words)}"


def _seen(medium: Medium) -> str:
    if not medium.data.startswith(b"\x89PNG"):
        raise JobError("unsupported_media", "this is no picture", param="prompt")
    return f"[{medium.kind} {medium.media_type} {len(medium.data)} {medium.digest[:8]} {medium.detail}]"
