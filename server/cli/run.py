"""`onecard run`: one question or a chat in the terminal, with a running server or one started for the while."""

from __future__ import annotations

import os
import select
import stat
import sys
from typing import TYPE_CHECKING, Any

from server.cli.configuration import loaded_or_exit
from server.cli.console import CliError, ExitCode, say, write
from server.cli.finding import refuse_without_text, server_for

if TYPE_CHECKING:
    from pathlib import Path

    from server.cli.client import Client

_STDIN_WAIT_S = 0.5


def run_chat(model: str, prompt: str | None, *, system: str | None, url: str | None, config: Path | None) -> None:
    """Answer the prompt (argument, stdin or both) or chat until `/exit`."""
    settings = loaded_or_exit(config).settings
    question = _question(prompt)
    if question is not None and not question.strip():
        raise CliError("there is nothing to ask. hint: give a prompt as an argument or on stdin", ExitCode.USAGE)
    messages = [{"role": "system", "content": system}] if system else []
    with server_for(model, url=url, config=config, settings=settings) as (client, name):
        refuse_without_text(client, name)
        if question is None:
            _chat(client, name, messages)
        else:
            _answer(client, name, [*messages, {"role": "user", "content": question}])


def _question(prompt: str | None) -> str | None:
    """The prompt with what was piped in; None when a person sits at the terminal and gave no prompt."""
    if prompt is None:
        return None if sys.stdin.isatty() else sys.stdin.read()
    if sys.stdin.isatty() or not _has_input():
        return prompt
    piped = sys.stdin.read()
    return f"{prompt}\n\n{piped}" if piped.strip() else prompt


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


def _answer(client: Client, model: str, messages: list[dict[str, str]]) -> str:
    """Stream one answer to stdout and return it."""
    parts: list[str] = []
    thinking = False
    body = {"model": model, "messages": messages, "stream": True}
    with client.stream("/v1/chat/completions", body) as documents:
        for document in documents:
            delta = _delta(document)
            if reasoning := delta.get("reasoning_content"):
                thinking = _show_thought(reasoning) or thinking
            if content := delta.get("content"):
                if thinking:
                    _show_thought("\n")
                    thinking = False
                write(content, end="")
                parts.append(content)
    write("")
    return "".join(parts)


def _delta(document: dict[str, Any]) -> dict[str, Any]:
    choices = document.get("choices") or [{}]
    return choices[0].get("delta") or {}


def _show_thought(text: str) -> bool:
    """Thoughts go to a terminal's stderr, dim, so that stdout is the answer alone."""
    if not sys.stderr.isatty():
        return False
    dim, plain = ("", "") if os.environ.get("NO_COLOR") else ("\033[2m", "\033[0m")
    sys.stderr.write(f"{dim}{text}{plain}")
    sys.stderr.flush()
    return True


def _chat(client: Client, model: str, messages: list[dict[str, str]]) -> None:
    """Questions and answers until `/exit` or the end of input; Ctrl-C stops an answer, not the chat."""
    from rich.console import Console
    from rich.prompt import Prompt

    console = Console(stderr=True, highlight=False)
    say(f"chat with {model}; /exit or Ctrl-D ends, Ctrl-C stops an answer")
    while True:
        try:
            question = Prompt.ask("[bold]you[/bold]", console=console)
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            continue
        if question.strip() in ("/exit", "/quit"):
            return
        if question.strip():
            messages = _turn(client, model, [*messages, {"role": "user", "content": question}])


def _turn(client: Client, model: str, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation after one answer; without the question when there was none."""
    try:
        return [*messages, {"role": "assistant", "content": _answer(client, model, messages)}]
    except KeyboardInterrupt:
        say("\n(stopped)")
    except CliError as problem:
        if problem.code == ExitCode.UNREACHABLE:
            raise
        say(f"onecard: {problem.message}")
    return messages[:-1]
