"""A chat as a person has it: a real pseudo-terminal, the line editor's real keys, a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import GGUF_PATH
from tests.cli.conftest import FAKE
from tests.cli.terminal import CTRL_C, CTRL_D, ENTER, UP, Terminal
from tests.e2e.server import Server, serving

XTERM = "xterm-256color"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Two models; the second loads slowly enough to be watched."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "slow.gguf").write_bytes(GGUF_PATH.read_bytes())
    (folder / "slow.gguf.fake").write_text("slow 20")
    models: dict[str, Path | str] = {"demo": "demo", "slow": folder / "slow.gguf"}
    with serving(folder, models=models, env=FAKE) as running:
        yield running


@pytest.fixture
def chat(environment, server, tmp_path):
    """A chat with `demo` in a terminal that can do everything; more flags and variables where a test wants them."""

    def _chat(*flags: str, term: str = XTERM, columns: int = 80, **variables: str) -> Terminal:
        arguments = ["run", "--url", server.url, *flags]
        return Terminal(arguments, {**environment, **variables}, tmp_path, term=term, columns=columns)

    return _chat


def test_questions_of_several_lines_history_and_commands(chat, tmp_path):
    with chat("demo") as terminal:
        terminal.expect("you:")
        terminal.paste("one\ntwo\nthree")
        terminal.type(ENTER)
        terminal.expect("echo: one\r\ntwo\r\nthree")
        terminal.expect("tokens")
        terminal.type("four\rfive\rsix\r")  # a paste that does not say so
        terminal.expect("echo: four\r\nfive\r\nsix")
        terminal.type("seven\x1b\reight\r")  # Alt-Enter
        terminal.expect("echo: seven\r\neight")
        terminal.type('"""nine\r')
        terminal.expect("...")
        terminal.type('ten"""\r')
        terminal.expect("echo: nine\r\nten")
        terminal.type("/nonsense\r")
        terminal.expect("there is no command /nonsense")
        terminal.type("/set temperature 7\r")
        terminal.expect("Invalid 'temperature'")
        terminal.type("/set temperature 0.5\r")
        terminal.expect("temperature: 0.5")
        terminal.type("/mod\tsl\t\r")
        terminal.expect("slow answers from now on")
        terminal.type("/model demo\r")
        terminal.expect("demo answers from now on")
        terminal.type("/save a.json\r")
        terminal.expect("messages are in")
        said = json.loads((tmp_path / "a.json").read_text())
        assert [message["content"] for message in said if message["role"] == "user"] == [
            "one\ntwo\nthree",
            "four\nfive\nsix",
            "seven\neight",
            "nine\nten",
        ]
        terminal.type(CTRL_D)  # waits where an answer still comes
        assert terminal.ends() == 0
    with chat("demo") as terminal:
        terminal.expect("you:")
        terminal.type(UP + UP)  # behind /save is /model
        terminal.type(ENTER)
        terminal.expect("demo answers from now on")
        terminal.type("/load a.json\r")
        terminal.expect("8 messages")
        terminal.type("/bye\r")
        assert terminal.ends() == 0


def test_ctrl_c_stops_an_answer_and_keeps_the_turn(chat, tmp_path):
    with chat("demo") as terminal:
        terminal.expect("you:")
        terminal.type("!slow 20 5000\r")
        terminal.expect("1 2 3")
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        terminal.expect("you:")
        terminal.type("next\r")
        terminal.expect("echo: next")
        terminal.type("/save a.json\r")
        terminal.expect("4 messages")
        said = json.loads((tmp_path / "a.json").read_text())
        assert said[0]["content"] == "!slow 20 5000"
        assert said[1]["content"].startswith("0 1 2 3")
        terminal.type("!say <think>musing</think>done\r")
        terminal.expect("\x1b[2mmusing\x1b[0m\r\n\r\ndone\r\n")
        terminal.expect("you:")
        terminal.type("/think hide\r")
        terminal.expect("hidden")
        terminal.type("/retry\r")
        terminal.expect("done")
        assert "musing" not in terminal.seen
        terminal.expect("you:")
        terminal.type("halfway" + CTRL_C)
        terminal.expect("Ctrl-C again or Ctrl-D ends the chat")
        terminal.expect("you:")
        terminal.type(CTRL_C)
        assert terminal.ends() == 0


def test_a_load_is_watched_and_can_be_stopped(chat):
    with chat("slow") as terminal:
        terminal.expect("you:")
        terminal.expect("loading slow, ")  # while nothing is typed yet
        terminal.type("are you there?")
        terminal.shows_in_one_row("you: are you there?", "loading slow, ")
        terminal.type(ENTER)
        terminal.expect("loading slow, ")
        terminal.type(CTRL_C)
        terminal.expect("(stopped; /retry asks again")
        terminal.expect("you:")
        terminal.type("/model demo\r")
        terminal.expect("demo answers from now on")
        terminal.type("/retry\r")
        terminal.expect("echo: are you there?")
        terminal.type(CTRL_D)
        assert terminal.ends() == 0


def test_what_goes_wrong_is_told_and_ends_nothing(chat, tmp_path):
    (tmp_path / "cat.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (tmp_path / "notes.md").write_text("a note")
    with chat("demo", "--verbose") as terminal:
        terminal.expect("you:")
        for line, told in (
            ("!refuse too odd", "too odd; /retry asks again"),
            ("!crash", "SIGABRT"),
            ("/file none.txt", "none.txt: there is no such file"),
            ("/file cat.png", "cat.png is no text in UTF-8"),
            ("/image notes.md", "notes.md is no image"),
            ("/load notes.md", "notes.md holds no conversation"),
            ("/save notes.md", "notes.md holds no conversation"),
            ("/save none/x.json", "none"),
            ("/model nothing", "there is no model 'nothing'"),
            ("/think perhaps", "/think takes on, off"),
            ("/image cat.png", "image/png"),
            ("what is it?", "no parts of type image"),
            ("/file notes.md", "6 characters"),
            ("and this?", "echo: notes.md:\r\n```\r\na note\r\n```\r\n\r\nand this?"),
            ("", "ended by: stop"),
        ):
            terminal.type(f"{line}\r")
            terminal.expect(told)
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    assert (tmp_path / "notes.md").read_text() == "a note"


def test_no_text_of_a_model_does_anything_to_the_terminal(chat):
    with chat("demo", NO_COLOR="1") as terminal:
        terminal.expect("you:")
        terminal.paste("!say <think>\x1b[5m</think>\x1b]0;evil\x07\x1b[2J")
        terminal.type(ENTER)
        terminal.expect("(thinking)\r\n\\x1b[5m\r\n(answer)\r\n\\x1b]0;evil\\x07\\x1b[2J\r\n")
        terminal.type("\x1b[31mcoloured\r")  # pasted without a word about it
        terminal.expect("echo: ")
        assert "\x1b[2m" not in terminal.seen
        terminal.type(CTRL_D)
        assert terminal.ends() == 0


def test_a_narrow_terminal_shows_whole_words_and_wide_characters(chat):
    with chat("demo", columns=40) as terminal:
        terminal.shows(
            "chat with demo; /help tells the",
            "commands, Ctrl-C stops an answer, Ctrl-D",
            "ends",
            "you:",
        )
        terminal.type("日本語のテスト文を書いてみましょう、どうなるか🎉")
        terminal.shows("you: 日本語のテスト文を書いてみましょう", "、どうなるか🎉")
        terminal.resize(60)
        terminal.type("x\r")
        terminal.expect("echo: 日本語のテスト文を書いてみましょう、どうなるか🎉x")
        terminal.type(CTRL_D)
        assert terminal.ends() == 0


def test_no_model_named_is_a_list_to_pick_from(chat):
    with chat() as terminal:
        terminal.expect("1  demo")
        terminal.expect("2  slow")
        terminal.expect("which one [1]:")
        terminal.type("7\r")
        terminal.expect("a number from 1 to 2")
        terminal.type("de\t\r")
        terminal.expect("chat with demo")
        terminal.type(CTRL_D)
        assert terminal.ends() == 0


def test_a_terminal_that_can_do_nothing_has_a_chat_too(chat, tmp_path):
    with chat("demo", term="dumb", ONECARD_HISTORY="0") as terminal:
        terminal.expect("you: ")
        terminal.type("one\ntwo\nthree\n")
        terminal.expect("echo: one\r\ntwo\r\nthree")
        terminal.type("/set seed 3\n")
        terminal.expect("seed: 3")
        assert "\x1b" not in terminal.seen
        terminal.type(CTRL_D)
        assert terminal.ends() == 0
    assert not (tmp_path / "state").exists()
