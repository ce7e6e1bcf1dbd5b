"""What a training file holds: examples of one form, or what is wrong in which line. Light, and bounded in memory.

JSON lines of chats (`messages`, as OpenAI has them), of `prompt` and `completion`, or of `text`; and tables (CSV) with
columns of these names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from backends.files import model_files
from backends.training.conversation import Conversation, conversation
from backends.training.lines import ExampleError, is_table, objects, shown, table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from backends.messages.training import TrainForm

MOST_FAULTS: Final = 20
"""Told of one file; the rest is counted."""
_PAUSE_EVERY: Final = 64
"""Examples; one of a few hundred bytes takes 10 us."""
_SIGNS_BYTES: Final = 6
"""Quotes, colon, comma and spaces around one part of JSON."""
_KEYS: Final[Mapping[TrainForm, str]] = {"chat": "messages", "completion": "prompt", "text": "text"}


class Fault(NamedTuple):
    """What is wrong in one line."""

    line: int
    """From 1; 0: with the file as a whole."""
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}" if self.line else self.message


class Completion(NamedTuple):
    """A beginning, and how it goes on."""

    prompt: str
    """Empty: of a text that is learnt from its first token."""
    completion: str


Example = Conversation | Completion


@dataclass(frozen=True)
class Checked:
    """What was found in a file."""

    form: TrainForm
    examples: int = 0
    text_bytes: int = 0
    """Of all examples, about, as templates write them; a token has three or four."""
    longest_bytes: int = 0
    """The text of the longest example, about; it has no more tokens."""
    longest_line: int = 0
    faults: tuple[Fault, ...] = ()
    """The first of them."""
    n_faults: int = 0

    @property
    def told(self) -> str:
        """All of `faults` in one text, a line each; empty where there is none."""
        more = self.n_faults - len(self.faults)
        return "\n".join([*map(str, self.faults), *([f"and {more} more"] if more else [])])


def check(
    path: Path, form: TrainForm | None = None, *, column: str = "text", pause: Callable[[], None] | None = None
) -> Checked:
    """Read a whole file and count. Blocks for 10 to 30 s per GB; takes no more memory than its longest line.

    Args:
        path: The file; what is no regular one is a fault.
        form: What each example has to be; None: what the first one is.
        column: Of a table, or the key of JSON lines: where the text stands, of form `text`.
        pause: Called about every millisecond, where other threads wait for this one's lock.
    """
    tally = _Tally(form or "chat")
    try:
        tally.form = form or form_of(path, column=column)
        for n, (line, found) in enumerate(read(path, tally.form, column=column)):
            if pause is not None and n % _PAUSE_EVERY == 0:
                pause()
            if isinstance(found, ExampleError):
                tally.wrong(Fault(line, str(found)))
            else:
                tally.right(line, _text_bytes(found))
    except (ExampleError, model_files.FileError) as fault:
        tally.wrong(Fault(0, str(fault)))
    if not tally.examples and not tally.faults:
        tally.wrong(Fault(0, "the file holds no example"))
    return tally.checked()


@dataclass
class _Tally:
    """A `Checked` while it is being counted: millions of lines may be."""

    form: TrainForm
    examples: int = 0
    text_bytes: int = 0
    longest: tuple[int, int] = (0, 0)
    faults: list[Fault] = field(default_factory=list)
    n_faults: int = 0

    def right(self, line: int, n_bytes: int) -> None:
        self.examples += 1
        self.text_bytes += n_bytes
        if n_bytes > self.longest[0]:
            self.longest = (n_bytes, line)

    def wrong(self, fault: Fault) -> None:
        self.n_faults += 1
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(fault)

    def checked(self) -> Checked:
        return Checked(self.form, self.examples, self.text_bytes, *self.longest, tuple(self.faults), self.n_faults)


def form_of(path: Path, *, column: str = "text") -> TrainForm:
    """What the first example is. Raises ExampleError, or model_files.FileError."""
    first = next(table(path) if is_table(path) else objects(path), None)
    if first is None:
        raise ExampleError("the file holds no example")
    if isinstance(first.value, ExampleError):
        raise ExampleError(f"line {first.line}: {first.value}")
    for form, key in {**_KEYS, "text": column}.items():
        if key in first.value:
            return form
    raise ExampleError(
        f"line {first.line} has {shown(first.value)}. hint: messages (a chat), prompt and completion, or "
        f"{shown([column])}"
    )


def read(path: Path, form: TrainForm, *, column: str = "text") -> Iterator[tuple[int, Example | ExampleError]]:
    """Every example with its line, or what is wrong there. Raises model_files.FileError."""
    found = table(path) if (tabular := is_table(path)) else objects(path)
    for n, (line, value) in enumerate(found):
        if isinstance(value, ExampleError):
            yield line, value
        elif tabular and n == 0:
            if (fault := _of_header(value, form, column)) is not None:
                yield line, fault
                return
        else:
            yield line, _example(value, form, column, strict=not tabular)


def _of_header(names: Mapping[str, Any], form: TrainForm, column: str) -> ExampleError | None:
    if form == "chat":
        return ExampleError("chats do not fit into a table. hint: JSON lines, or columns prompt and completion")
    wanted = (column,) if form == "text" else ("prompt", "completion")
    if missing := [name for name in wanted if name not in names]:
        return ExampleError(f"the header names the columns {shown(names)}, and {shown(missing)} is none of them")
    return None


def _example(value: dict[str, Any], form: TrainForm, column: str, *, strict: bool) -> Example | ExampleError:
    try:
        match form:
            case "chat":
                return conversation(value)
            case "completion":
                _check_keys(value, ("prompt", "completion"), strict=strict)
                return Completion(_text(value, "prompt"), _filled(value, "completion"))
            case "text":
                _check_keys(value, (column,), strict=strict)
                return Completion("", _filled(value, column))
    except ExampleError as fault:
        return fault


def _check_keys(value: Mapping[str, Any], known: tuple[str, ...], *, strict: bool) -> None:
    """Other columns of a table are another's; another key of a JSON object may be a mistyped one."""
    if strict and (unknown := sorted(value.keys() - set(known))):
        raise ExampleError(f"it has {shown(unknown)}, which is not known. hint: {' and '.join(known)} alone")


def _text(value: Mapping[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise ExampleError(f"{shown([key])} is missing" if text is None else f"{shown([key])} is no text")
    return text


def _filled(value: Mapping[str, Any], key: str) -> str:
    text = _text(value, key)
    if not text.strip():
        raise ExampleError(f"{shown([key])} is empty, so there is nothing to learn. hint: leave the line out")
    return text


def _text_bytes(example: Example) -> int:
    """Of everything that a template may write of it; the names in a message stand for the marks of its turn."""
    if isinstance(example, Completion):
        return _bytes_of(example.prompt) + _bytes_of(example.completion)
    return _bytes_of(example.messages) + _bytes_of(example.tools)


def _bytes_of(value: Any) -> int:
    """Of a value in a template's hands: texts as they are, the rest as JSON."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    if isinstance(value, dict):
        n_bytes = _SIGNS_BYTES * len(value)
        for key, one in value.items():
            n_bytes += len(key) if key.isascii() else _bytes_of(key)
            n_bytes += len(one) if type(one) is str and one.isascii() else _bytes_of(one)
        return n_bytes
    if isinstance(value, list):
        n_bytes = _SIGNS_BYTES * len(value)
        for one in value:
            n_bytes += _bytes_of(one)
        return n_bytes
    return len(str(value))
