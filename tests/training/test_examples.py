"""Training files line by line: what is taken, and what is said of each line that is not."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from backends.training.examples import MOST_FAULTS, Completion, check, read
from backends.training.lines import MAX_LINE_BYTES

ASK = {"role": "user", "content": "Where?"}
ANSWER = {"role": "assistant", "content": "Here."}
CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "2"}


def file_of(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "file.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def faults(tmp_path: Path, *lines: Any, form: Any = "chat") -> str:
    return check(file_of(tmp_path, *lines), form).told


def test_good_files_are_counted_by_their_form(tmp_path):
    chats = [{"messages": [ASK, ANSWER]}, {"messages": [ASK, CALLS, RESULT, ANSWER], "tools": []}]
    for form, lines in (
        ("chat", chats),
        ("completion", [{"prompt": "", "completion": "a"}, {"prompt": "b", "completion": "c"}]),
        ("text", [{"text": "a"}, {"text": "bc"}]),
    ):
        checked = check(file_of(tmp_path, *lines))
        assert (checked.form, checked.examples, checked.told) == (form, 2, "")


def test_empty_lines_and_a_byte_order_mark_say_nothing(tmp_path):
    path = file_of(tmp_path, b'\xef\xbb\xbf{"text": "a"}', b"", b"  ", {"text": "b"})
    assert [line for line, _ in read(path, "text")] == [1, 4]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"messages": [{"role": "bot", "content": "x"}, ANSWER]}, "messages[0].role is bot. hint: system"),
        ({"messages": [ASK, {"role": "assistant", "content": ""}]}, "messages[1] is empty. hint: an answer has words"),
        ({"messages": [ASK, {"role": "assistant"}]}, "messages[1] is empty"),
        ({"messages": [ASK, {"role": "assistant", "content": "Y", "refusal": "No"}]}, "messages[1] has a content"),
        ({"messages": [ANSWER, ASK]}, "ends with the role user"),
        ({"messages": []}, "has no messages"),
        ({"mesages": [ASK, ANSWER]}, "mesages, which is not known"),
        ({"messages": [ASK, ANSWER], "functions": []}, "hint: use tools"),
        ({"messages": [ASK, {**ANSWER, "weight": 2}]}, "messages[1].weight is 2. hint: 0 or 1"),
        ({"messages": [ASK, {**ANSWER, "weight": 0}]}, "nothing is learnt"),
        ({"messages": [ASK, ASK, ANSWER]}, "messages[1] is a second message of the user in a row"),
        ({"messages": [ASK, {"role": "system", "content": "x"}, ANSWER]}, "messages[1] is a system message behind"),
        ({"messages": [ASK, RESULT, ANSWER]}, "messages[1].tool_call_id is that of no call"),
        ({"messages": [{**ASK, "tool_calls": [CALL]}, ANSWER]}, "only an assistant calls tools"),
        ({"messages": [ASK, {"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
         "arguments is no JSON"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
         "messages[0].content[0] is of type image_url"),
        ({"messages": [{"role": "user", "content": 7}, ANSWER]}, "messages[0].content is no text"),
        ({"messages": [ASK, ANSWER], "tools": [{}]}, "tools[0] is no function"),
        (b'{"messages": [], "messages": []}', "no JSON that can be read"),
        (b'{"messages": ', "no JSON that can be read"),
        (b'{"text": "\xff"}', "no UTF-8 text: byte 11"),
        (b'{"text": "\\ud800"}', "no JSON that can be read"),
        (b"[1]", "no JSON object"),
        (b'{"a": ' + b"[" * 100_000, "no JSON that can be read"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_with_its_number(tmp_path, line, says):
    good = {"messages": [ASK, ANSWER]}
    told = faults(tmp_path, good, line, good)
    assert told.startswith("line 2: ")
    assert says in told


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"prompt": "a"}, "completion is missing"),
        ({"prompt": "a", "completion": "  "}, "completion is empty"),
        ({"prompt": 1, "completion": "a"}, "prompt is no text"),
        ({"prompt": "a", "completion": "b", "weight": 1}, "weight, which is not known"),
    ],
)
def test_a_wrong_completion_is_named(tmp_path, line, says):
    assert says in faults(tmp_path, line, form="completion")


def test_of_many_faults_the_first_are_told_and_the_rest_is_counted(tmp_path):
    checked = check(file_of(tmp_path, *[{"text": ""}] * (MOST_FAULTS + 5)))
    assert (len(checked.faults), checked.n_faults) == (MOST_FAULTS, MOST_FAULTS + 5)
    assert checked.told.endswith("and 5 more")


def test_a_line_without_end_is_told_and_the_next_one_is_read(tmp_path):
    long = b'{"text": "' + b"x" * (MAX_LINE_BYTES + 70_000) + b'"}'
    told = faults(tmp_path, long, {"text": 1}, form="text").splitlines()
    assert told[0] == (
        f"line 1: it has {len(long) + 1} bytes, and a line may have {MAX_LINE_BYTES}. hint: make several examples of it"
    )
    assert told[1] == "line 2: text is no text"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_has_its_text_in_a_column(tmp_path, separator):
    path = tmp_path / "table.csv"
    rows = [("id", "text"), ("1", '"two\nlines, ""quoted"""'), ("2", "plain")]
    path.write_text("\n".join(separator.join(row) for row in rows), newline="")
    assert check(path).form == "text"
    assert list(read(path, "text")) == [
        (2, Completion("", 'two\nlines, "quoted"')),
        (4, Completion("", "plain")),
    ]


def test_another_column_may_hold_it(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,body\n1,hello\n")
    assert check(path, column="body").examples == 1
    assert "the header names" not in check(path, "text", column="body").told
    assert "hint: messages (a chat), prompt and completion, or text" in check(path).told


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"text\n\"open\nnever closed\n", "line 2: a quote that begins here is not closed"),
        (b"a,text\n1,x,y\n", "line 2: it has 3 columns, and the header names 2"),
        (b"text,text\n1,2\n", "the header names the column 'text' twice"),
        (b"text\nfine\n\xff\n", "line 3: it is no UTF-8 text"),
        (b"text\n\"" + b"x\n" * 200_000, "line 2: a field has more than 131072 characters"),
        (b"\xff\xfet\x00e\x00", "it is UTF-16"),
        (b"", "the file holds no example"),
    ],
)  # fmt: skip
def test_a_wrong_table_is_named(tmp_path, raw, says):
    path = tmp_path / "table.csv"
    path.write_bytes(raw)
    assert says in check(path).told


def test_chats_do_not_fit_into_a_table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("messages\nx\n")
    assert "chats do not fit into a table" in check(path, "chat").told


def test_what_is_no_file_is_a_fault_and_nothing_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file but a pipe" in check(tmp_path / "pipe").told
    assert "does not exist" in check(tmp_path / "gone").told


def test_a_large_file_takes_no_more_memory_than_a_line(tmp_path):
    path = tmp_path / "large.jsonl"
    line = json.dumps({"messages": [ASK, {"role": "assistant", "content": "x" * 4000}]}).encode() + b"\n"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(line * 256)
    code = f"from pathlib import Path; from backends.training.examples import check; print(check(Path({str(path)!r})))"
    limits = (resource.RLIMIT_DATA, (60 << 20, 60 << 20))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(*limits),
    )
    assert "examples=16384" in done.stdout, done.stderr


def test_a_check_pauses_every_few_examples(tmp_path):
    """Else the event loop, which waits for the interpreter's lock, has its turn 5 ms later each time."""
    path, pauses = tmp_path / "x.jsonl", []
    path.write_text('{"text": "Arr"}\n' * 1000)

    assert check(path, pause=lambda: pauses.append(1)).examples == 1000
    assert len(pauses) == 16
