"""How much work a job is to prepare, told from the bytes of its text before anybody renders or tokenizes it. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.messages import ChatPrompt, Detokenize, Embed, FimPrompt, Rerank, TextPrompt

if TYPE_CHECKING:
    from backends.messages import Job, Prompt

_TOKEN_BYTES = 4
"""What one token id counts for."""


def job_bytes(job: Job) -> int:
    """About so many bytes of text have to be read for the job."""
    if isinstance(job, Embed):
        return sum(text_bytes(one) if isinstance(one, str) else len(one) * _TOKEN_BYTES for one in job.inputs)
    if isinstance(job, Rerank):
        return text_bytes(job.query) * len(job.documents) + text_bytes(job.documents)
    if isinstance(job, Detokenize):
        return len(job.tokens) * _TOKEN_BYTES
    return _prompt_bytes(job.prompt)


def _prompt_bytes(prompt: Prompt) -> int:
    if isinstance(prompt, ChatPrompt):
        return text_bytes([prompt.messages, prompt.tools])
    if isinstance(prompt, TextPrompt):
        return text_bytes(prompt.text)
    if isinstance(prompt, FimPrompt):
        return text_bytes([prompt.prefix, prompt.suffix, [file.text for file in prompt.files]])
    return len(prompt.tokens) * _TOKEN_BYTES


def sure_bytes(prompt: Prompt) -> int:
    """Bytes that are in the rendered prompt for certain; templates may leave other things out, such as reasoning."""
    if isinstance(prompt, ChatPrompt):
        calls = [call.get("function") for message in prompt.messages for call in message.get("tool_calls", [])]
        return text_bytes([[message.get("content") for message in prompt.messages], calls, prompt.tools])
    if isinstance(prompt, TextPrompt):
        return text_bytes(prompt.text)
    if isinstance(prompt, FimPrompt):
        return text_bytes([prompt.prefix, prompt.suffix])
    return 0


def text_bytes(value: object) -> int:
    """UTF-8 bytes of all strings in plain data, the names of objects among them."""
    total, todo = 0, [value]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            total += len(item) if item.isascii() else len(item.encode("utf-8", "surrogatepass"))
        elif isinstance(item, dict):
            todo.extend(item)
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return total
