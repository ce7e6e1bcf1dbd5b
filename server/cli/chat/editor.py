"""The line editor of a chat: prompt_toolkit with our history, keys and completions. Imported in a terminal alone."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.data_structures import Size
from prompt_toolkit.document import Document
from prompt_toolkit.history import History as Entries
from prompt_toolkit.input import create_input
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.keys import Keys
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.shortcuts import CompleteStyle

from server.cli.chat.keyboard import PROMPT
from server.cli.chat.options import names
from server.cli.chat.parsing import COMMANDS, is_command, wants_more
from server.cli.chat.screen import colourful
from server.cli.console import harmless

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from prompt_toolkit.formatted_text import StyleAndTextTuples
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

    from server.cli.chat.history import History


class Editor:
    """Lines with history, completion and pasting; drawn on stderr."""

    reads_keys = True

    def __init__(self, history: History, words: Mapping[str, Sequence[str]], aside: Callable[[], str]) -> None:
        self._aside = aside
        self._session: PromptSession[str] = PromptSession(
            history=_Entries(history),
            multiline=True,
            key_bindings=_keys(),
            completer=_Completer(words),
            complete_while_typing=False,
            # A menu would keep lines free below the prompt, at the bottom of the screen too.
            complete_style=CompleteStyle.READLINE_LIKE,
            prompt_continuation=lambda _width, _line, soft_wrap: "" if soft_wrap else "...  ",
            enable_suspend=True,
            rprompt=self._edge,
            input=create_input(sys.stdin),
            # Terminals that do not answer where their cursor is would be warned about; nothing here needs to know.
            output=Vt100_Output(sys.stderr, _size, term=os.environ.get("TERM"), enable_cpr=False),
        )

    def ask(self, *, prompt: str = PROMPT) -> str:
        """As `Keyboard` says."""
        return self._session.prompt([("bold", prompt)])

    def redraw(self) -> None:
        """As `Keyboard` says."""
        self._session.app.invalidate()

    def _edge(self) -> StyleAndTextTuples:
        """What stands at the right edge; nothing of it stays when the line is sent."""
        dim = "dim" if colourful() else ""
        return [] if get_app().is_done else [(dim, harmless(self._aside()))]


def _size() -> Size:
    """Of the terminal now; 80 x 24 where it says nothing."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except OSError:
        columns, rows = 0, 0
    return Size(rows=rows or 24, columns=columns or 80)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _enter(event: KeyPressEvent) -> None:
        """Sends, but within quotation marks, and where more lies there already: that was pasted."""
        buffer = event.current_buffer
        if wants_more(buffer.text) or (_more_follows(event) and buffer.text.strip() and not is_command(buffer.text)):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _alt_enter(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @keys.add(Keys.Vt100MouseEvent)
    def _mouse(_: KeyPressEvent) -> None:
        """Nothing: no mouse is asked for, and colours of a pasted log look like one to the library."""

    return keys


def _more_follows(event: KeyPressEvent) -> bool:
    """Whether text lies behind this key already, as it does within a paste."""
    queue = event.key_processor.input_queue
    return bool(queue) and (len(queue[0].key) == 1 or queue[0].key in (Keys.ControlM, Keys.ControlJ))


class _Entries(Entries):
    """Our file as the library asks for it: the newest first."""

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def load_history_strings(self) -> Iterable[str]:
        return reversed(self._history.load())

    def store_string(self, string: str) -> None:
        self._history.add(string)


class _Completer(Completer):
    """Commands, and what may follow them."""

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._words = words
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        command, space, rest = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            yield from (Completion(word, -len(text)) for word in self._words.get("", ()) if word.startswith(text))
            return
        if not space:
            for name in COMMANDS:
                if name.startswith(command[1:].lower()):
                    yield Completion(f"{name} " if COMMANDS[name][0] else name, start_position=1 - len(command))
            return
        if COMMANDS.get(command[1:].lower(), ("", ""))[0].startswith("FILE"):
            start = rest.rpartition(" ")[2]
            yield from self._paths.get_completions(Document(start), complete_event)
            return
        for word in names() if command.lower() == "/set" else self._words.get(command[1:].lower(), ()):
            if word.startswith(rest):
                yield Completion(word, start_position=-len(rest))
