"""The lines of a batch's files as OpenAI's clients read them, and the objects of its routes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, TypedDict

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from server.batches.records import AnsweredLine, Batch, State
    from server.files.store import StoredFile

_UNASKED: Final = {
    "expired": ("batch_expired", "This request was not run before the batch's window had ended."),
    "cancelled": ("batch_cancelled", "This request was not run before the batch was cancelled."),
}


def output_lines(lines: Iterable[AnsweredLine], batch_id: str, state: State) -> Iterator[bytes]:
    """A line of JSON for each; one that was never asked says why not."""
    for line in lines:
        written: dict[str, Any] = {
            "id": f"batch_req_{batch_id.removeprefix('batch_')}_{line.n}",
            "custom_id": line.custom_id,
            "response": None,
            "error": None,
        }
        if line.status:
            body = msgspec.Raw(line.answer)
            written["response"] = {"status_code": line.status, "request_id": line.request_id, "body": body}
        else:
            code, message = _UNASKED.get(state, _UNASKED["expired"])
            written["error"] = {"code": code, "message": message}
        yield msgspec.json.encode(written) + b"\n"


class _Details(msgspec.Struct):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Used(msgspec.Struct):
    """Of an answer, whatever surface gave it."""

    prompt_tokens: int = 0
    input_tokens: int = 0
    completion_tokens: int = 0
    output_tokens: int = 0
    cache_read_input_tokens: int = 0
    """Anthropic's; its `input_tokens` are without them."""
    prompt_tokens_details: _Details | None = None
    input_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    usage: _Used | None = None


def usage_of(answers: Iterable[bytes]) -> dict[str, int]:
    """The tokens of all answers together."""
    total = dict.fromkeys(("input_tokens", "cached_tokens", "output_tokens", "reasoning_tokens"), 0)
    decode = msgspec.json.Decoder(_Answer).decode
    for answer in answers:
        used = decode(answer).usage or _Used()
        before = used.prompt_tokens_details or used.input_tokens_details or _Details()
        behind = used.completion_tokens_details or used.output_tokens_details or _Details()
        total["input_tokens"] += used.prompt_tokens or used.input_tokens + used.cache_read_input_tokens
        total["output_tokens"] += used.completion_tokens or used.output_tokens
        total["cached_tokens"] += (before.cached_tokens or 0) + used.cache_read_input_tokens
        total["reasoning_tokens"] += behind.reasoning_tokens or 0
    return total


class FileObject(TypedDict):
    """A file, as OpenAI has it."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: str | None


class FilePage(TypedDict):
    """Files, a page of them."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(TypedDict):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: bool


def file_object(file: StoredFile) -> FileObject:
    """As clients read it."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.n_bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


class BatchProblem(TypedDict):
    """What is wrong with an input file."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchProblems(TypedDict):
    """Why a batch has failed."""

    object: Literal["list"]
    data: list[BatchProblem]


class BatchCounts(TypedDict):
    """Requests by how they have ended."""

    total: int
    completed: int
    failed: int


class BatchUsage(TypedDict):
    """Tokens of a batch that has ended."""

    input_tokens: int
    input_tokens_details: dict[str, int]
    output_tokens: int
    output_tokens_details: dict[str, int]
    total_tokens: int


class BatchObject(TypedDict):
    """A batch, as OpenAI has it."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: BatchProblems | None
    input_file_id: str
    completion_window: str
    status: str
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    metadata: dict[str, str] | None
    usage: NotRequired[BatchUsage]


class BatchPage(TypedDict):
    """Batches, a page of them."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def batch_object(batch: Batch, counts: tuple[int, int, int]) -> BatchObject:
    """As clients read it."""
    record, times = batch.record, batch.record.times
    problems: list[BatchProblem] = [
        {"code": one["code"], "message": one["message"], "line": one["line"], "param": one["param"]}
        for one in record.errors
    ]
    found: BatchObject = {
        "id": batch.id,
        "object": "batch",
        "endpoint": record.endpoint,
        "model": None,
        "errors": {"object": "list", "data": problems} if problems else None,
        "input_file_id": record.input_file_id,
        "completion_window": record.completion_window,
        "status": batch.state,
        "output_file_id": record.output_file_id,
        "error_file_id": record.error_file_id,
        "created_at": record.created_at,
        "in_progress_at": times.get("in_progress_at"),
        "expires_at": batch.expires_at,
        "finalizing_at": times.get("finalizing_at"),
        "completed_at": times.get("completed_at"),
        "failed_at": times.get("failed_at"),
        "expired_at": times.get("expired_at"),
        "cancelling_at": times.get("cancelling_at"),
        "cancelled_at": times.get("cancelled_at"),
        "request_counts": {"total": counts[0], "completed": counts[1], "failed": counts[2]},
        "metadata": record.metadata,
    }
    if used := record.usage:
        found["usage"] = {
            "input_tokens": used["input_tokens"],
            "input_tokens_details": {"cached_tokens": used["cached_tokens"]},
            "output_tokens": used["output_tokens"],
            "output_tokens_details": {"reasoning_tokens": used["reasoning_tokens"]},
            "total_tokens": used["input_tokens"] + used["output_tokens"],
        }
    return found
