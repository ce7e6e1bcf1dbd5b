"""A recipe's files as rows of tokens: every example read, encoded and held against the length it may have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from backends.files import model_files
from backends.training.errors import TrainError
from backends.training.examples import MOST_FAULTS, read
from backends.training.lines import ExampleError
from backends.training.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.messages.training import Recipe
    from backends.training.encoding import Encoder, Row

_LOOKS_EVERY: Final = 256
_MOST_CHARS: Final = 4000


class Data(NamedTuple):
    """What a job learns from, and what it is held against."""

    learn: Rows
    evaluate: Rows


def load(recipe: Recipe, encoder: Encoder, *, look: Callable[[], None]) -> Data:
    """Read both files; `look` is called in between. Raises TrainError with the lines that are wrong."""
    learn = _rows(Path(recipe.training_file), recipe, encoder, look)
    if not recipe.validation_file:
        return Data(*learn.split(recipe.evaluation_share, recipe.seed))
    return Data(learn, _rows(Path(recipe.validation_file), recipe, encoder, look))


def _rows(path: Path, recipe: Recipe, encoder: Encoder, look: Callable[[], None]) -> Rows:
    rows, faults, n_faults = Rows(), list[str](), 0
    try:
        for n, (line, found) in enumerate(read(path, recipe.form, column=recipe.column)):
            if n % _LOOKS_EVERY == 0:
                look()
            try:
                if isinstance(found, ExampleError):
                    raise found
                for row in encoder.rows(found):
                    _add(rows, row, recipe)
            except ExampleError as fault:
                n_faults += 1
                faults += [f"line {line}: {fault}"] if len(faults) < MOST_FAULTS else []
    except model_files.FileError as fault:
        raise TrainError("bad_data", str(fault)) from fault
    if faults:
        more = [f"and {n_faults - len(faults)} more lines"] if n_faults > len(faults) else []
        raise TrainError("bad_data", "\n".join([*faults, *more])[:_MOST_CHARS])
    if not len(rows):
        raise TrainError("bad_data", f"{path.name} holds no example")
    return rows


def _add(rows: Rows, row: Row, recipe: Recipe) -> None:
    """Raises ExampleError."""
    n_tokens = len(row.tokens)
    if n_tokens > recipe.max_length:
        if not recipe.cut_long:
            raise ExampleError(
                f"it has {n_tokens} tokens, and max_length is {recipe.max_length}. hint: a larger max_length, or "
                "cut_long to learn its beginning alone"
            )
        row = row.cut(recipe.max_length)
        rows.n_cut += 1
    if not any(row.learnt):
        raise ExampleError(
            f"of its {n_tokens} tokens none is left to learn. hint: its prompt alone is as long as max_length"
            if n_tokens > recipe.max_length
            else "it has no token to learn"
        )
    rows.add(row)
