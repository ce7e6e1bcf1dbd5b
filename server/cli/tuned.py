"""What fine-tuning jobs of this user have made, for commands that find no server to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.tuning.look import Made

TUNED = "ft:"
"""How their names begin."""


def tuned_models() -> dict[str, Made]:
    """By name, the oldest first. Raises CliError."""
    import sqlite3

    import msgspec

    from server.cli.console import CliError
    from server.files.folder import TABLES
    from server.memory.learned import data_folder
    from server.tuning.look import made

    try:
        return made(data_folder() / TABLES)
    except (sqlite3.Error, msgspec.ValidationError) as problem:
        raise CliError(f"the jobs in {data_folder()} cannot be read: {problem}") from None
