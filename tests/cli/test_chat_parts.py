"""What a chat is made of: lines, fields, files and histories, by table."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from server.cli.chat import history
from server.cli.chat.answering import Answer
from server.cli.chat.attachments import MOST_TEXT_BYTES, Attachments
from server.cli.chat.conversation import Conversation, loaded
from server.cli.chat.history import History, history_file
from server.cli.chat.loop import Chat, Start
from server.cli.chat.options import Options, names
from server.cli.chat.parsing import COMMANDS, Command, LineError, Question, parse, wants_more
from server.cli.client import Client
from server.cli.console import CliError, harmless

PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


@pytest.mark.parametrize(
    ("line", "means"),
    [
        ("hello there", Question("hello there")),
        ("  indented", Question("  indented")),
        ("", None),
        (" \n\t", None),
        ("/bye", Command("bye")),
        ("/exit", Command("bye")),
        ("/QUIT ", Command("bye")),
        ("/?", Command("help")),
        ("/set temperature  0.2 ", Command("set", "temperature  0.2")),
        ("/system You are\nterse.", Command("system", "You are\nterse.")),
        (" /help", Question(" /help")),
        ("/etc/hosts is what?", Question("/etc/hosts is what?")),
        ("// a comment", Question("// a comment")),
        ("/* a comment */", Question("/* a comment */")),
        ('"""one\ntwo"""', Question("one\ntwo")),
        ('"""\none\n"""', Question("one")),
        ('"""', Question('"""')),
        ("one\\\ntwo", Question("one\ntwo")),
        ("what is /help?", Question("what is /help?")),
    ],
)
def test_a_line_is_a_question_or_a_command(line, means):
    assert parse(line) == means


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/foo", "/help lists them"),
        ("/modle x", "did you mean /model"),
        ("/", "/help lists them"),
        ("/help!", "did you mean /help"),
        ("/1", "/help lists them"),
        ("/Füße", "/help lists them"),
        ("/bye now", "takes nothing"),
        ("/clear all", "takes nothing"),
    ],
)
def test_a_command_that_there_is_not_is_refused(line, said):
    with pytest.raises(LineError, match=said):
        parse(line)


def test_every_command_is_carried_out():
    chat = Chat(Client("http://127.0.0.1:9", key=None), "any", Start())
    assert {*chat.commands, "bye"} == {*COMMANDS}


@pytest.mark.parametrize(
    ("text", "more"), [("a", False), ("a\\", True), ('"""a', True), ('"""a\nb"""', False), ('say """', False)]
)
def test_open_text_wants_more_lines(text, more):
    assert wants_more(text) is more


def test_words_of_a_command_are_quoted_as_in_a_shell():
    assert Command("file", "'a b' c\\ d").words() == ["a b", "c d"]
    with pytest.raises(LineError, match="never closed"):
        Command("file", "'a").words()


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("temperature", "0.2", 0.2),
        ("temperature", "1", 1),
        ("seed", "-3", -3),
        ("stop", "END", "END"),
        ("stop", "5", "5"),
        ("stop", '["a", "b"]', ["a", "b"]),
        ("logit_bias", '{"7": -100}', {"7": -100}),
        ("keep_alive", "5m", "5m"),
        ("keep_alive", "-1", -1),
        ("max_tokens", "7", 7),
        ("ignore_eos", "true", True),
        ("guided_choice", '["yes", "no"]', ["yes", "no"]),
        ("reasoning_effort", "low", "low"),
    ],
)
def test_fields_are_those_of_the_servers_schema(name, written, value):
    options = Options()
    options.set(name, written)
    body = options.body("chat", [])
    assert (body[name], body["stream"], body["model"]) == (value, True, "chat")
    assert options.told(name, own={}) == [f"{name}: {json.dumps(value)}"]
    options.set(name, "null")
    assert options.told(name, own={}) == [f"{name}: not set"]


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("temperature", "9", "temperature"),
        ("temperature", "hot", "expected a decimal"),
        ("temprature", "1", "did you mean temperature"),
        ("messages", "[]", "no field 'messages'"),
        ("model", "x", "no field 'model'"),
        ("stream", "false", "no field 'stream'"),
        ("n", "2", "no field 'n'"),
        ("x" * 500, "1", r"no field 'xxx+\.\.\.'"),
        ("min_tokens", "9", "at most 'max_tokens'"),
        ("keep_alive", "soon", "keep_alive"),
        ("format", "nowhere.json", "neither json nor a file"),
        ("format", "{", "is no JSON"),
        ("format", "[" * 5_000, "neither json nor a file"),
        ("format", '{"type": "json_schema"}', "json_schema"),
        ("format", "a\0b", "null byte"),
        ("format", "~no-such-user/x", "there is no such user"),
    ],
)
def test_what_the_schema_refuses_is_not_set(name, written, said):
    options = Options()
    options.set("max_tokens", "5")
    with pytest.raises(CliError, match=said):
        options.set(name, written)
    assert options.values == {"max_tokens": 5}


def test_fields_of_sampling_are_there_and_what_the_chat_decides_is_not():
    assert {"temperature", "top_p", "top_k", "min_p", "seed", "stop", "max_tokens", "response_format"} < {*names()}
    assert not {"model", "messages", "tools", "n", "store", "metadata"} & {*names()}


def test_a_form_is_json_or_a_schema_or_its_file(tmp_path):
    schema = {"title": "a b", "type": "object", "properties": {"x": {"type": "integer"}}}
    (tmp_path / "s.json").write_text(json.dumps(schema))
    named = {"type": "json_schema", "json_schema": {"name": "a-b", "schema": schema}}
    for written, field in (
        ("json", {"type": "json_object"}),
        (json.dumps(schema), named),
        (str(tmp_path / "s.json"), named),
        (json.dumps(named), named),
    ):
        options = Options()
        options.set("format", written)
        assert options.values == {"response_format": field}
        options.set("format", "text")
        assert options.values == {}


def test_thinking_is_asked_for_or_left_to_the_model():
    asked = [Options(think=think).body("m", []).get("chat_template_kwargs") for think in (None, True, False)]
    assert asked == [None, {"enable_thinking": True}, {"enable_thinking": False}]


def test_files_and_images_go_with_one_question(tmp_path):
    (tmp_path / "a.md").write_text("\ufeffone\n````\ntwo\n")
    (tmp_path / "a.bin").write_bytes(PNG)
    attached = Attachments()
    assert attached.add_text(tmp_path / "a.md") == "a.md: 13 characters, 3 lines"
    assert attached.add_image(tmp_path / "a.bin") == "a.bin: image/png, 1 KiB"
    content = attached.taken("what is it?")
    assert isinstance(content, list)
    text, image = content
    assert text == {"type": "text", "text": "a.md:\n`````\none\n````\ntwo\n`````\n\nwhat is it?"}
    url = image["image_url"]["url"]
    assert (image["type"], base64.b64decode(url.removeprefix("data:image/png;base64,"))) == ("image_url", PNG)
    assert attached.taken("next") == "next"


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xd8\xff\xe0" + bytes(9), "image/jpeg"),
        (b"GIF89a" + bytes(9), "image/gif"),
        (b"RIFF\x0a\x00\x00\x00WEBPVP8 ", "image/webp"),
        (b"RIFF\x0a\x00\x00\x00WAVEfmt ", None),
        (b"<svg>", None),
        (b"", None),
    ],
)
def test_the_type_of_an_image_is_what_it_holds(tmp_path, data, kind):
    path = tmp_path / "x.png"
    path.write_bytes(data)
    if kind is None:
        with pytest.raises(CliError, match="is no image"):
            Attachments().add_image(path)
    else:
        assert kind in Attachments().add_image(path)


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    (tmp_path / "nul").write_bytes(b"a\0b")
    (tmp_path / "large").write_bytes(b"a" * (MOST_TEXT_BYTES + 1))
    os.mkfifo(tmp_path / "fifo")
    attached = Attachments()
    for name, said in (
        ("latin", "no text in UTF-8"),
        ("nul", "null bytes"),
        ("large", "1.0 MiB"),
        ("fifo", "no file"),
    ):
        with pytest.raises(CliError, match=said):
            attached.add_text(tmp_path / name)
    for name, problem in (("none", FileNotFoundError), (".", IsADirectoryError)):
        with pytest.raises(problem):
            attached.add_text(tmp_path / name)
    assert not attached


def test_a_conversation_knows_what_waits_for_an_answer():
    said = Conversation()
    assert not said.again()
    said.system = "Be terse."
    assert (said.again(), said.waits) == (False, False)
    said.ask("one")
    said.answer("")
    assert said.waits
    said.ask("another")
    assert [message["content"] for message in said.messages] == ["Be terse.", "another"]
    said.answer("yes")
    said.ask("more")
    said.answer("no")
    assert said.again()
    assert [message["content"] for message in said.messages] == ["Be terse.", "another", "yes", "more"]
    said.system = "Be long."
    said.clear()
    assert said.messages == [{"role": "system", "content": "Be long."}]
    said.system = None
    assert said.messages == []


def test_a_conversation_is_saved_whole_and_only_over_its_like(tmp_path):
    said = Conversation([{"role": "system", "content": "ß"}, {"role": "user", "content": [{"type": "text"}]}])
    path = tmp_path / "chat.json"
    said.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert loaded(path) == said
    said.answer("more")
    said.save(path)
    assert loaded(path) == said
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(CliError, match="holds no conversation"):
        said.save(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == "mine"
    (tmp_path / "link.json").symlink_to(path)
    said.clear()
    said.save(tmp_path / "link.json")
    assert (loaded(path), (tmp_path / "link.json").is_symlink()) == (said, True)
    with pytest.raises(FileNotFoundError):
        said.save(tmp_path / "none" / "chat.json")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["chat.json", "link.json", "notes"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", '{"a": 1}', '[{"role": "user"}]', '[{"role": "king", "content": "x"}]', "[" * 100_000, "7"],
)
def test_what_holds_no_conversation_is_not_loaded(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(CliError, match="holds no conversation"):
        loaded(tmp_path / "x")


def test_conversations_of_other_programs_are_loaded(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": []}]
    (tmp_path / "x").write_text(json.dumps({"model": "m", "messages": messages}))
    assert loaded(tmp_path / "x").messages == messages


def _history(path: Path) -> tuple[History, list[str]]:
    told: list[str] = []
    return History(path, told.append), told


def test_history_is_kept_across_runs_for_its_user_alone(tmp_path):
    path = tmp_path / "a" / "b" / "history"
    first, told = _history(path)
    assert first.load() == []
    for entry in ("one", "two\nlines", "emoji 🎉", "\udcff"):
        first.add(entry)
    assert _history(path)[0].load() == ["one", "two\nlines", "emoji 🎉", "\udcff"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert told == []


def test_history_is_bounded_and_survives_what_is_not_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(history, "MOST_ENTRIES", 10)
    path = tmp_path / "history"
    path.write_bytes(b'"kept"\nnot json\n{}\n\xff\n"half')
    assert _history(path)[0].load() == ["kept"]
    path.unlink()
    entries, told = _history(path)
    for at in range(25):
        entries.add(f"entry {at}")
    entries.add("x" * 100_000)
    assert entries.load() == [f"entry {at}" for at in range(15, 25)]
    assert len(path.read_text().splitlines()) == 10
    assert told == []


def test_a_history_that_cannot_be_kept_is_told_once(tmp_path):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "file" / "history", tmp_path / "fifo", tmp_path):
        entries, told = _history(path)
        assert entries.load() == []
        entries.add("one")
        entries.add("two")
        assert len(told) == 1
        assert "no history is kept" in told[0]


def test_history_can_be_switched_off_and_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "onecard" / "run-history.jsonl"
    for off in ("0", "off", "False", "no"):
        monkeypatch.setenv("ONECARD_HISTORY", off)
        assert history_file() is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain\n\ttext 日本 🎉 👩‍💻", "plain\n\ttext 日本 🎉 👩‍💻"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("over\rwritten\r\n", "overwritten\n"),
        ("\x9b2J\x7f\x00", "\\x9b2J\\x7f\\x00"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
    ],
)
def test_no_text_of_a_model_moves_the_cursor(text, shown):
    assert harmless(text) == shown


def test_tokens_per_second_leave_the_first_piece_out():
    answer = Answer(usage={"completion_tokens": 10}, asked_at=1.0)
    assert answer.tokens_per_s is None
    answer.came("12345")
    assert answer.tokens_per_s is None
    answer.came("67890")
    answer.first_at, answer.last_at = 2.0, 4.0
    assert answer.tokens_per_s == pytest.approx(2.5)
    assert answer.figures() == "10 tokens, 2.5 tokens/s, first after 1.00 s"
