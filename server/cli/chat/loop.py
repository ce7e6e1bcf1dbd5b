"""The chat itself: lines are questions or commands, and it goes on until its user ends it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from server.cli.chat.answering import answered
from server.cli.chat.attachments import Attachments
from server.cli.chat.conversation import Conversation, loaded
from server.cli.chat.dropped import dropped
from server.cli.chat.files import path_of
from server.cli.chat.keyboard import silent_keys
from server.cli.chat.options import Options
from server.cli.chat.parsing import COMMANDS, Command, LineError, Question, nearest, parse
from server.cli.chat.screen import Screen, note, table
from server.cli.chat.warming import Warming
from server.cli.console import CliError
from server.cli.finding import chat_models, refuse_without_text, text_models
from server.cli.output import sentence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from server.cli.chat.keyboard import Keyboard
    from server.cli.client import Client

_WELCOME = "chat with {model}; /help tells the commands, Ctrl-C stops an answer, Ctrl-D ends"
_KEYS = 'Enter sends; Alt-Enter, a \\ at the end or """ around it make more lines; Tab completes'


WORDS: Final[Mapping[str, Sequence[str]]] = MappingProxyType({"think": ("on", "off", "auto", "show", "hide")})


@dataclass
class Start:
    """What there is before the first question."""

    conversation: Conversation = field(default_factory=Conversation)
    options: Options = field(default_factory=Options)
    attachments: Attachments = field(default_factory=Attachments)


class Chat:
    """One chat with one server."""

    def __init__(self, client: Client, model: str, start: Start, *, verbose: bool = False) -> None:
        self.client = client
        self.model = model
        self.conversation = start.conversation
        self.options = start.options
        self.attachments = start.attachments
        self.screen = Screen()
        self.verbose = verbose
        self.warming = Warming(client)
        self._interrupted = False

    def run(self, keyboard: Keyboard) -> None:
        """Take lines until the end: `/bye`, Ctrl-D, or Ctrl-C twice. What goes wrong is said and ends nothing."""
        # From here on, so that a key between an answer and the next prompt is not the kernel's.
        with silent_keys(as_keys=True) if keyboard.reads_keys else contextlib.nullcontext():
            note(_WELCOME.format(model=self.model))
            self.warming.on_change = keyboard.redraw
            self.warming.begin(self.model)
            while self._turn(keyboard):
                pass

    def _turn(self, keyboard: Keyboard) -> bool:
        """One line and what it asks for; whether the chat goes on."""
        interrupted, self._interrupted = self._interrupted, False
        try:
            said = parse(keyboard.ask())
            if said == Command("bye"):
                return False
            self._do(said)
        except EOFError:
            return False
        except KeyboardInterrupt:
            if interrupted:
                return False
            self._interrupted = True
            note("Ctrl-C again or Ctrl-D ends the chat")
        except CliError as problem:
            note(problem.message, dim=False)
        except LineError as problem:
            note(str(problem), dim=False)
        except OSError as problem:
            note(sentence(problem), dim=False)
        return True

    def _answer(self) -> None:
        """The last question's answer, which is kept also where it was stopped."""
        body = self.options.body(self.model, self.conversation.messages)
        with silent_keys(as_keys=False):
            answer = answered(self.client, body, self.screen)
        self.conversation.answer(answer.text)
        again = "" if answer.text else "; /retry asks again, another question takes its place"
        if answer.stopped:
            note(f"(stopped{again})")
        elif answer.problem is not None:
            note(f"{answer.problem.message}{again}", dim=False)
        elif self.verbose:
            note("\n".join(answer.details()))
        else:
            note(answer.figures())

    def _do(self, said: Question | Command | None) -> None:
        match said:
            case Question(text):
                text, paths = dropped(text, _is_file) if self._may_drop(text) else (text, [])
                for path in paths:
                    note(f"with the question: {self.attachments.add_image(path_of(path))}")
                if text or not paths:
                    self.conversation.ask(self.attachments.taken(text))
                    self._answer()
            case Command():
                self.commands[said.name](said)
            case None:
                pass

    def _may_drop(self, text: str) -> bool:
        """Whether paths in a question may be images to show: the model sees, and there are some."""
        if not dropped(text, _is_file).paths:
            return False
        return "vision" in self.client.get(f"/v1/models/{quote(self.model)}").get("capabilities", [])

    @property
    def commands(self) -> dict[str, Callable[[Command], None]]:
        """What carries each out; `bye` is the loop's own."""
        return {
            "help": self._help,
            "model": self._model,
            "system": self._system,
            "set": self._set,
            "think": self._think,
            "image": self._image,
            "audio": self._audio,
            "file": self._file,
            "save": self._save,
            "load": self._load,
            "clear": self._clear,
            "retry": self._retry,
        }

    def _help(self, _: Command) -> None:
        table((f"/{name} {rest}", what) for name, (rest, what) in COMMANDS.items())
        note(_KEYS)

    def _model(self, command: Command) -> None:
        if not command.rest:
            for item in chat_models(self.client):
                mark = "*" if self.model in (item["id"], *item.get("aliases", [])) else " "
                note(f"{mark} {item['id']}  {item.get('state', '')}")
            return
        known = text_models(self.client)
        if command.rest not in known:
            like = nearest(command.rest, known)
            hint = f"did you mean {like}?" if like else f"there are {', '.join(known)}"
            raise CliError(f"there is no model '{command.rest}'. hint: {hint}")
        refuse_without_text(self.client, command.rest)
        self.model = command.rest
        note(f"{self.model} answers from now on")
        self.warming.begin(self.model)

    def _system(self, command: Command) -> None:
        if command.rest:
            self.conversation.system = "" if command.rest in ('""', "''") else command.rest
        note(f"system message: {self.conversation.system or 'none'}")

    def _set(self, command: Command) -> None:
        name, _, value = command.rest.partition(" ")
        if value.strip():
            self.options.set(name, value.strip())
        own = self.client.get(f"/v1/models/{quote(self.model)}").get("sampling") or {}
        for line in self.options.told(name or None, own=own):
            note(line)

    def _think(self, command: Command) -> None:
        match command.rest.lower():
            case "":
                pass
            case "show" | "hide" as word:
                self.screen.thoughts = word == "show"
            case "on" | "off" | "auto" as word:
                self.options.think = {"on": True, "off": False}.get(word)
            case other:
                raise LineError(f"/think takes on, off, auto, show or hide, not '{other}'")
        wish = {True: "on", False: "off", None: "as the model does by itself"}[self.options.think]
        note(f"thinking: {wish}, {'shown' if self.screen.thoughts else 'hidden'}")

    def _image(self, command: Command) -> None:
        for word in _paths(command):
            note(f"with the next question: {self.attachments.add_image(word)}")

    def _audio(self, command: Command) -> None:
        for word in _paths(command):
            note(f"with the next question: {self.attachments.add_sound(word)}")

    def _file(self, command: Command) -> None:
        for word in _paths(command):
            note(f"with the next question: {self.attachments.add_text(word)}")

    def _save(self, command: Command) -> None:
        path = _path(command)
        self.conversation.save(path)
        note(f"{len(self.conversation.messages)} messages are in {path}")

    def _load(self, command: Command) -> None:
        self.conversation = loaded(_path(command))
        waits = "; the last question has no answer, /retry asks it" if self.conversation.waits else ""
        note(f"{len(self.conversation.messages)} messages{waits}")

    def _clear(self, _: Command) -> None:
        self.conversation.clear()
        self.attachments.clear()
        note("forgotten")

    def _retry(self, _: Command) -> None:
        if not self.conversation.again():
            raise LineError("there is no question yet")
        self._answer()


def _is_file(word: str) -> bool:
    try:
        return path_of(word).is_file()
    except (CliError, OSError, ValueError):
        return False


def _path(command: Command) -> Path:
    paths = _paths(command)
    if len(paths) != 1:
        raise LineError(f"/{command.name} takes one file. hint: quote a name with spaces")
    return paths[0]


def _paths(command: Command) -> list[Path]:
    words = [word for word in command.words() if word]
    if not words:
        raise LineError(f"/{command.name} wants a file")
    return [path_of(word) for word in words]
