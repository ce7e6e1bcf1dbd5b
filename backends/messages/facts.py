"""What loaded models tell of themselves beside what all tell: each sort of model what it has, and nothing it has not.

Here are those of text. A backend with another sort of model has its own beside its kind of job (`Kind.facts`).
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.messages.plain import Figure, Plain


class Facts(Plain, frozen=True):
    """Of one loaded model; each sort is a subclass with a tag of its own."""

    @property
    def told(self) -> Mapping[str, Figure]:
        """What `/v1/status` and `ps` tell of a loaded model because it is of this sort, by name."""
        return {}

    @property
    def adapters(self) -> Mapping[str, str]:
        """Every LoRA adapter that is configured, and why it is not served; empty text where it is."""
        return {}


class TextFacts(Facts, frozen=True):
    """Of any model that reads text."""

    context: int
    """Tokens one request may use."""
    n_ctx_train: int
    n_vocab: int


class GeneratorFacts(TextFacts, tag="generator", frozen=True):
    """Of a model that generates text."""

    tool_format: str | None = None
    """How the model writes tool calls, by its name in `backends.formats`; None when it takes no chat."""
    reasoning_marks: tuple[str, str] | None = None
    """What opens and closes a reasoning block in the model's text; None when it writes none."""
    template_options: list[str] = []
    """Switches for reasoning that the chat template reads, among: enable_thinking, thinking, reasoning_effort,
    thinking_budget."""
    speculation: str = "off"
    """How tokens are drafted; `off` with a reason where the model is the reason."""
    store_error: str = ""
    """Why nothing is kept of cached prefixes though it was asked for; empty where it is."""
    kv_type: str = ""
    """Of the KV cache, as its plan has it."""
    adapters: dict[str, str] = {}
    """Every LoRA adapter that is configured, and why it is not served; empty text where it is."""

    @property
    def told(self) -> Mapping[str, Figure]:
        """The adapters that are served."""
        return told_adapters(self.adapters)


class EncoderFacts(TextFacts, tag="encoder", frozen=True):
    """Of an embedding model or a reranker."""


def told_adapters(adapters: Mapping[str, str]) -> dict[str, Figure]:
    """Those that are served, of `Facts.adapters`."""
    served = [name for name, why in adapters.items() if not why]
    return {"adapters": ", ".join(served)} if served else {}
