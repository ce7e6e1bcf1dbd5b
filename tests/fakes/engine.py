"""A stand-in for an inference engine, run in real worker processes: it is strict about room, and it fails on request.

Use it with the environment variable ONECARD_TEST_ENGINE="tests.fakes.engine:load".
One token of a prompt is one UTF-8 byte.

The last user message (or the text prompt) directs the answer, one word per step:
    hello world      -> "echo: hello world"
    !say TEXT        -> TEXT as it stands
    !long N          -> "0 1 2 ..." N words
    !slow MS N       -> the same, MS milliseconds apart
    !crash           -> two words, then abort()
    !crash-early     -> abort() before the first word
    !raise           -> an exception inside step
    !oom             -> two words, then a MemoryError inside step
    !oom-once FILE   -> a MemoryError before the first word, unless that file was made before
    !hang            -> a step that never ends
    !prepare MS      -> a preparation that takes MS milliseconds, then echo
    !prepare-till FIFO -> a preparation until that pipe, open for writing elsewhere, is closed there, then echo
    !refuse TEXT     -> JobError("invalid_value", TEXT, param="prompt")
The file `<model path>.fake`, or else the variable ONECARD_TEST_LOAD, directs the load:
    slow S | fail TEXT | oom TEXT | crash | hang | raise | garbage | bytes N [M]

N is what `measured_bytes` says, M what is taken of host memory beside a card.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from backends.engine import JobError, LoadError
from backends.messages import (
    ChatPrompt,
    Delta,
    Detokenize,
    Detokenized,
    Embed,
    Embedded,
    ErrorCode,
    Event,
    Failed,
    FimPrompt,
    Finished,
    FinishReason,
    Generate,
    GeneratorFacts,
    GeneratorPlan,
    Job,
    Layers,
    LoadModel,
    Prompt,
    Ready,
    Rerank,
    Started,
    Step,
    TextPrompt,
    Tokenize,
    Tokenized,
    TokenLogprob,
    TokenPrompt,
)
from backends.plan import JOBS_AT_ONCE

FOREVER_S = 3600.0


def load(spec: LoadModel, progress: Callable[[float], None]) -> FakeEngine:
    """The loader that the registry finds."""
    sidecar = Path(spec.path + ".fake")
    directive = sidecar.read_text() if sidecar.exists() else os.environ.get("ONECARD_TEST_LOAD", "")
    verb, _, rest = directive.strip().partition(" ")
    measured_bytes, host_bytes = 1 << 20, 0
    match verb:
        case "slow":
            for tenth in range(10):
                progress(tenth / 10)
                time.sleep(float(rest) / 10)
        case "fail":
            raise LoadError(rest)
        case "oom":
            raise LoadError(rest, out_of_memory=True)
        case "raise":
            raise ValueError(f"a library stumbled over {spec.path}")
        case "crash":
            sys.stderr.write(f"{spec.path}.c:17: GGML_ASSERT(n_embd > 0) failed\n")
            sys.stderr.flush()
            os.abort()
        case "hang":
            time.sleep(FOREVER_S)
        case "garbage":
            for fd in range(3, 64):
                try:
                    os.write(fd, b"\x05\x00\x00\x00hello")
                except OSError:
                    continue
        case "bytes":
            measured_bytes, host_bytes = (int(n) for n in (*rest.split(), "0")[:2])
    progress(1.0)
    return FakeEngine(spec, measured_bytes, host_bytes)


@dataclass
class FakePrepared:
    """A job with the words it will say."""

    job: Generate
    prompt_tokens: int
    words: list[str]
    delay_s: float = 0.0
    trap: str = ""

    @property
    def id(self) -> str:
        return self.job.id


@dataclass
class Running:
    """A job inside the engine: its choices run as sequences, at most `parallel` of them at once."""

    prepared: FakePrepared
    sequences: int
    choices: deque[tuple[int, Iterator[tuple[int, str]]]] = field(default_factory=deque)
    started: bool = False
    completion_tokens: int = 0


class FakeEngine:
    """Keeps the rules of a real engine: never more sequences than `parallel`, one terminal event per job."""

    def __init__(self, spec: LoadModel, measured_bytes: int, host_bytes: int = 0) -> None:
        plan = spec.plan
        self._context, self._parallel = plan.context, plan.parallel if isinstance(plan, GeneratorPlan) else JOBS_AT_ONCE
        self._measured_bytes, self._host_bytes = measured_bytes, host_bytes
        self._running: dict[str, Running] = {}

    takes = (Generate, Tokenize, Detokenize, Embed, Rerank)

    def ready(self) -> Ready:
        facts = GeneratorFacts(
            context=self._context,
            n_ctx_train=8192,
            n_vocab=256,
            tool_format="hermes",
            reasoning_marks=("<think>", "</think>"),
            template_options=["enable_thinking"],
        )
        return Ready(
            facts,
            parallel=self._parallel,
            layers=Layers(0, 4),
            measured_bytes=self._measured_bytes,
            parts={"weights": self._measured_bytes},
            host_parts={"runtime": self._host_bytes} if self._host_bytes else {},
            capabilities=["chat", "completion", "infill", "tools", "thinking", "embedding", "rerank"],
            engine="fake 1",
        )

    def prepare(self, job: Job) -> FakePrepared | list[Event]:
        if isinstance(job, Detokenize):
            if any(not 0 <= token < 256 for token in job.tokens):
                raise JobError("invalid_value", "a token id is outside 0..255", param="tokens")
            text = bytes(job.tokens).decode(errors="replace")
            return [Detokenized(id=job.id, text=text), Finished(id=job.id)]
        if isinstance(job, Embed | Rerank):
            return _vectors(job)
        assert isinstance(job, Generate | Tokenize)
        tokens = _tokens(job.prompt)
        if isinstance(job, Tokenize):
            pieces = [bytes([token]) for token in tokens] if job.pieces else None
            return [Tokenized(id=job.id, tokens=tokens, pieces=pieces), Finished(id=job.id)]
        if len(tokens) >= self._context:
            message = (
                f"This model's maximum context length is {self._context} tokens. However, your prompt resulted in "
                f"{len(tokens)} tokens. Please reduce the length of the prompt."
            )
            raise JobError("context_length_exceeded", message, param="prompt")
        return _script(job, len(tokens))

    def add(self, prepared: FakePrepared) -> list[Event]:
        sequences = min(prepared.job.n, self._parallel)
        taken = sum(running.sequences for running in self._running.values())
        if taken + sequences > self._parallel:
            raise RuntimeError("more sequences than room: the server must not dispatch this")
        if prepared.trap == "crash-early":
            os.abort()
        running = Running(prepared, sequences)
        words = prepared.words
        running.choices.extend((index, enumerate(words)) for index in range(prepared.job.n))
        self._running[prepared.id] = running
        return []

    def interrupt(self, job_id: str) -> None:
        """Its steps are short."""

    def attend(self, waits: Callable[[], bool]) -> None:
        """The same."""

    def make_way(self) -> None:
        """The same."""

    def cancel(self, job_id: str) -> list[Event]:
        if self._running.pop(job_id, None) is None:
            return []
        return [Failed(id=job_id, code="cancelled", message="the request was cancelled")]

    def cut_short(self, job_id: str, reason: ErrorCode) -> list[Event]:
        running = self._running.get(job_id)
        if running is None or not running.completion_tokens:
            return self.cancel(job_id)
        del self._running[job_id]
        n_prompt, n_tokens = running.prepared.prompt_tokens, running.completion_tokens
        return [
            *(Delta(job_id, index, "", 0, None, "length") for index, _ in running.choices),
            Finished(id=job_id, prompt_tokens=n_prompt, completion_tokens=n_tokens, cut_short=reason),
        ]

    def preempt(self, job_id: str) -> list[Event]:
        del job_id
        return []

    def step(self) -> Step:
        begin = time.monotonic()
        events: list[Event] = []
        n_decode = n_prefill = 0
        for running in list(self._running.values()):
            if not running.started:
                running.started = True
                n_prefill += running.prepared.prompt_tokens
                events.append(Started(id=running.prepared.id, prompt_tokens=running.prepared.prompt_tokens))
            n_decode += self._advance(running, events)
        duration_us = int((time.monotonic() - begin) * 1e6)
        kv_used = sum(r.prepared.prompt_tokens + r.completion_tokens for r in self._running.values())
        kv_total = self._context * self._parallel
        return Step(
            events=events,
            n_decode=n_decode,
            n_prefill=n_prefill,
            duration_us=duration_us,
            kv_used=min(kv_used, kv_total),
            kv_total=kv_total,
        )

    def _advance(self, running: Running, events: list[Event]) -> int:
        prepared = running.prepared
        if prepared.delay_s:
            time.sleep(prepared.delay_s)
        active = [running.choices.popleft() for _ in range(min(running.sequences, len(running.choices)))]
        unfinished: list[tuple[int, Iterator[tuple[int, str]]]] = []
        for index, words in active:
            position, word = next(words, (len(prepared.words), ""))
            _spring(prepared.trap, position)
            delta = _delta(prepared, index, position, word)
            if word:
                running.completion_tokens += 1
            events.append(delta)
            if delta.finish_reason is None:
                unfinished.append((index, words))
        running.choices.extendleft(reversed(unfinished))
        if not running.choices:
            del self._running[prepared.id]
            events.append(
                Finished(
                    id=prepared.id,
                    prompt_tokens=prepared.prompt_tokens,
                    completion_tokens=running.completion_tokens,
                )
            )
        return len(active)

    def keep(self, max_bytes: int) -> None:
        """It computes nothing that could be kept."""

    @property
    def idle(self) -> bool:
        return not self._running

    def close(self) -> None:
        self._running.clear()


def _vectors(job: Embed | Rerank) -> list[Event]:
    """Of a text: how many bytes it has, and the first three; of a document: how many bytes it shares with the query."""
    if isinstance(job, Embed):
        inputs = [list(text.encode()) if isinstance(text, str) else text for text in job.inputs]
        rows = [[len(tokens), *[*tokens, 0, 0, 0][:3]][: job.dimensions] for tokens in inputs]
        n_tokens = sum(map(len, inputs))
    else:
        rows = [[len(set(job.query.encode()) & set(text.encode()))] for text in job.documents]
        n_tokens = sum(len(job.query.encode()) + len(text.encode()) for text in job.documents)
    vectors = b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)
    return [
        Started(id=job.id, prompt_tokens=n_tokens),
        Embedded(id=job.id, inputs=list(range(len(rows))), dimensions=len(rows[0]), vectors=vectors),
        Finished(id=job.id, prompt_tokens=n_tokens),
    ]


def _delta(prepared: FakePrepared, index: int, position: int, word: str) -> Delta:
    limit = prepared.job.max_tokens
    last = position >= len(prepared.words) - 1
    cut = limit is not None and position + 1 >= limit and not last
    reason: FinishReason | None = "length" if cut else "stop" if last else None
    logprobs = None
    if prepared.job.logprobs is not None and word:
        top = [TokenLogprob(word, -0.5, word.encode())] * min(prepared.job.logprobs, 1)
        logprobs = [TokenLogprob(word, -0.5, word.encode(), top)]
    return Delta(
        id=prepared.id, index=index, text=word, n_tokens=1 if word else 0, logprobs=logprobs, finish_reason=reason
    )


def _spring(trap: str, position: int) -> None:
    if trap == "crash" and position == 2:
        os.abort()
    if trap == "raise" and position == 2:
        raise KeyError("a secret of the prompt")
    if trap == "hang" and position == 1:
        time.sleep(FOREVER_S)
    if trap == "oom" and position == 2:
        raise MemoryError
    if trap.startswith("oom-once ") and position == 0 and _first_time(trap.removeprefix("oom-once ")):
        raise MemoryError


def _first_time(marker: str) -> bool:
    """Whether none has come by here yet, in any process."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _script(job: Generate, prompt_tokens: int) -> FakePrepared:
    text = _last_text(job.prompt)
    verb, _, rest = text.partition(" ")
    arguments = rest.split()
    prepared = FakePrepared(job, prompt_tokens, _words(f"echo: {text}"))
    match verb:
        case "!say":
            prepared.words = _words(rest)
        case "!long":
            prepared.words = _words(" ".join(map(str, range(int(arguments[0])))))
        case "!slow":
            prepared.delay_s = float(arguments[0]) / 1000
            prepared.words = _words(" ".join(map(str, range(int(arguments[1])))))
        case "!crash" | "!raise" | "!hang" | "!oom":
            prepared.trap = verb[1:]
            prepared.words = _words("one two three four")
        case "!crash-early":
            prepared.trap = "crash-early"
        case "!oom-once":
            prepared.trap = text[1:]
            prepared.words = _words("one two three four")
        case "!prepare":
            time.sleep(float(arguments[0]) / 1000)
        case "!prepare-till":
            Path(arguments[0]).read_bytes()
        case "!refuse":
            raise JobError("invalid_value", rest, param="prompt")
    if job.max_tokens == 0:
        prepared.words = []
    return prepared


def _words(text: str) -> list[str]:
    """Cut text into words that keep the space before them: joining them gives the text back."""
    head, *tail = text.split(" ")
    return [word for word in [head, *(f" {word}" for word in tail)] if word]


def _last_text(prompt: Prompt) -> str:
    match prompt:
        case ChatPrompt(messages=messages):
            users = [m for m in messages if m.get("role") in ("user", "tool")]
            return str((users or messages)[-1].get("content") or "")
        case TextPrompt(text=text):
            return text
        case FimPrompt(prefix=prefix, suffix=suffix):
            return f"{prefix}|{suffix}"
        case TokenPrompt(tokens=tokens):
            return bytes(token % 256 for token in tokens).decode(errors="replace")
        case _:
            raise JobError("invalid_value", "this engine reads no such prompt", param="prompt")


def _tokens(prompt: Prompt) -> list[int]:
    match prompt:
        case ChatPrompt(messages=messages):
            return list("\n".join(str(m.get("content") or "") for m in messages).encode())
        case TextPrompt(text=text):
            return list(text.encode())
        case FimPrompt(prefix=prefix, suffix=suffix):
            return list((prefix + suffix).encode())
        case TokenPrompt(tokens=tokens):
            if any(not 0 <= token < 256 for token in tokens):
                raise JobError("invalid_value", "a token id is outside 0..255", param="prompt")
            return tokens
        case _:
            raise JobError("invalid_value", "this engine reads no such prompt", param="prompt")
