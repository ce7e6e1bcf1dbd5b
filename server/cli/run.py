"""`onecard run`: one question or a chat in the terminal, with a running server or one started for the while."""

from __future__ import annotations

import os
import select
import stat
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.cli.chat.answering import answered
from server.cli.chat.history import History, history_file
from server.cli.chat.keyboard import keyboard_for
from server.cli.chat.loop import WORDS, Chat, Start
from server.cli.chat.options import Options
from server.cli.chat.screen import Screen, note, waiting
from server.cli.configuration import loaded_or_exit
from server.cli.console import CliError, ExitCode, harmless, say
from server.cli.finding import models_at, refuse_without_text, server_for, text_models

if TYPE_CHECKING:
    from pathlib import Path

    from server.cli.client import Client
    from server.settings.config import Settings

_STDIN_WAIT_S = 0.5
_MOST_STDIN_BYTES = 64 << 20


@dataclass(frozen=True)
class Wishes:
    """The flags of `onecard run` that say what is sent with a question."""

    system: str | None = None
    fields: dict[str, str] = field(default_factory=dict)
    """Of the request, by name, as they were written."""
    think: bool | None = None
    images: list[Path] = field(default_factory=list)
    sounds: list[Path] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    verbose: bool = False


def run_chat(model: str | None, words: list[str], wishes: Wishes, *, url: str | None, config: Path | None) -> None:
    """Answer the prompt (words, stdin or both) or chat until its user ends it."""
    settings = loaded_or_exit(config).settings
    question = _question(" ".join(words) if words else None)
    if question is not None and not question.strip():
        raise CliError("there is nothing to ask. hint: give a prompt as an argument or on stdin", ExitCode.USAGE)
    start = _start(wishes)
    wanted = model or _picked(url, settings, may_ask=question is None)
    with ExitStack() as stack:
        with waiting("starting a server"):
            found = server_for(wanted, url=url, config=config, settings=settings)
            client, name = stack.enter_context(found)
            refuse_without_text(client, name)
        if question is None:
            _talk(Chat(client, name, start, verbose=wishes.verbose))
        else:
            _answer(client, name, start, question, verbose=wishes.verbose)


def _start(wishes: Wishes) -> Start:
    """What the flags say, checked before anything is started for it. Raises CliError and OSError."""
    start = Start(options=Options(think=wishes.think))
    start.conversation.system = wishes.system
    for name, value in wishes.fields.items():
        start.options.set(name, value)
    for path in wishes.images:
        start.attachments.add_image(path)
    for path in wishes.sounds:
        start.attachments.add_sound(path)
    for path in wishes.files:
        start.attachments.add_text(path)
    return start


def _talk(chat: Chat) -> None:
    """A chat with the best keyboard that there is."""
    history = History(history_file(), note)
    words = {"model": text_models(chat.client), **WORDS}
    chat.run(keyboard_for(history, words, aside=lambda: chat.warming.told))


def _answer(client: Client, model: str, start: Start, question: str, *, verbose: bool) -> None:
    """One question and its answer. Raises CliError and KeyboardInterrupt."""
    start.conversation.ask(start.attachments.taken(question))
    answer = answered(client, start.options.body(model, start.conversation.messages), Screen())
    if answer.problem is not None:
        raise answer.problem
    if answer.stopped:
        raise KeyboardInterrupt
    if verbose:
        for line in answer.details():
            say(line)


def _picked(url: str | None, settings: Settings, *, may_ask: bool) -> str:
    """The model to talk with where none was named: the only one, or the one its user picks. Raises CliError."""
    names = models_at(url, settings)
    if len(names) == 1:
        return names[0]
    if not names or not may_ask:
        hint = f"name one of {', '.join(names)}" if names else "configure a model that writes text"
        raise CliError(f"no model is named. hint: {hint}", ExitCode.USAGE)
    for at, name in enumerate(names, 1):
        say(f"{at:3}  {harmless(name)}")
    keyboard = keyboard_for(History(None, note), {"": names})
    while True:
        try:
            written = keyboard.ask(prompt="which one [1]: ").strip() or "1"
        except EOFError:
            raise CliError("no model was picked", ExitCode.USAGE) from None
        if written in names:
            return written
        if written.isascii() and written.isdigit() and 0 < int(written) <= len(names):
            return names[int(written) - 1]
        note(f"a number from 1 to {len(names)}, or a name")


def _question(prompt: str | None) -> str | None:
    """The prompt with what was piped in; None when a person sits at the terminal and gave no prompt."""
    if prompt is None:
        return None if sys.stdin.isatty() else _piped()
    if sys.stdin.isatty() or not _has_input():
        return prompt
    piped = _piped()
    return f"{prompt}\n\n{piped}" if piped.strip() else prompt


def _piped() -> str:
    """All of stdin. Raises CliError for what is no text, and for more than any server takes."""
    data = sys.stdin.buffer.read(_MOST_STDIN_BYTES + 1)
    if len(data) > _MOST_STDIN_BYTES:
        raise CliError(f"stdin gives more than {_MOST_STDIN_BYTES >> 20} MiB", ExitCode.USAGE)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        told = "stdin is no text in UTF-8. hint: --image FILE sends an image, --audio FILE a sound"
        raise CliError(told, ExitCode.USAGE) from None


def _has_input() -> bool:
    """Whether stdin is a file, or a pipe that gives something. A pipe that was left open must not hang us."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    if stat.S_ISREG(mode):
        return True
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return False
    if select.select([sys.stdin], [], [], _STDIN_WAIT_S)[0]:
        return True
    say("onecard: nothing came on stdin, so only the prompt is sent")
    return False
