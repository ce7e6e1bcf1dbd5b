"""The runner's walk over real stores: faults of ours, and what has had its time."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from backends.messages import Failed
from server.batches import ending, runner, under_way
from server.batches.answers import output_lines
from server.batches.asking import refused
from server.batches.reading import Line
from server.batches.records import Batch, BatchRecord, LeftLine
from server.batches.runner import BatchRunner
from server.batches.store import KEPT_S, TABLES, BatchStore
from server.batches.under_way import Answer
from server.errors import ApiError, from_failed
from server.files.folder import DataFolder
from server.files.store import TABLE, FileStore, StoredFile

CHAT = "/v1/chat/completions"
ENDED = {"completed", "failed", "cancelled", "expired"}


class Quiet:
    """Models that are always there, and no client."""

    def width(self, model: str) -> int:
        return 4

    def resident(self, model: str) -> bool:
        return True

    def same(self, model: str, name: str) -> bool:
        return model == name

    def quiet_s(self) -> float:
        return 1e9


class Desk:
    """A runner over real stores, whose lines are answered by `answer`, and the time it is told."""

    def __init__(self, place: Path) -> None:
        self.now = time.time()
        self.place = place
        self.answer = b'{"usage": {"prompt_tokens": 2, "completion_tokens": 3}}'
        self.statuses: list[int] = []
        self.short_of: str | None = None
        self.n_asked = 0
        self.folder = DataFolder(lambda: place, (TABLE, TABLES))
        self.files = FileStore(self.folder, lambda: self.now)
        self.batches = BatchStore(self.folder, lambda: self.now)
        self.new_runner()

    def new_runner(self) -> None:
        """As a server that starts has one."""
        self.runner = BatchRunner(
            self.batches, self.files, Quiet(), self.ask, clock=lambda: self.now, count=lambda _: None
        )

    async def ask(self, line: Any) -> Answer:
        self.n_asked += 1
        status = self.statuses.pop(0) if self.statuses else 200
        return Answer(status, "req", self.answer, may_pass=status == 499, short_of=self.short_of)

    def upload(self, n_lines: int, lifetime_s: int | None = None) -> StoredFile:
        path = self.place / "upload"
        lines = [
            {"custom_id": f"{n}", "method": "POST", "url": CHAT, "body": {"model": "m", "messages": []}}
            for n in range(n_lines)
        ]
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
        return self.files.keep(path, owner="anna", name="in", purpose="batch", lifetime_s=lifetime_s)

    def begin(self, n_lines: int) -> Batch:
        record = BatchRecord(
            endpoint=CHAT, input_file_id=self.upload(n_lines).id, completion_window="24h", created_at=int(self.now)
        )
        return self.batches.create(record, owner="anna", window_s=86400)

    async def ended(self, batch: Batch) -> Batch:
        return await self.until(lambda: self.batches.get(batch.id, None), lambda now: now.state in ENDED)

    async def until(self, get: Any, found: Any) -> Any:
        async with asyncio.timeout(20):
            while not found(now := get()):  # noqa: ASYNC110 - of another thread's disk
                await asyncio.sleep(0.01)
            return now


@pytest.fixture
async def desk(tmp_path: Path):
    made = Desk(tmp_path)
    yield made
    await made.runner.close()
    made.folder.close()


def fails_at(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> list[ValueError]:
    """The server fails to write the files of this batch while there are faults in the list."""
    faults = [ValueError("ours")]

    def faulty(lines: Any, batch_id: str, state: Any) -> Any:
        if faults and batch_id == batch.id:
            raise faults[0]
        return output_lines(lines, batch_id, state)

    monkeypatch.setattr(ending, "output_lines", faulty)
    return faults


async def test_a_batch_whose_files_the_server_fails_to_write_keeps_its_answers_and_holds_up_no_other(
    desk: Desk, monkeypatch, caplog
):
    first, second = desk.begin(2), desk.begin(3)
    faults = fails_at(first, monkeypatch)
    monkeypatch.setattr(ending, "AGAIN_S", (0.02, 0.05))

    await desk.runner.start(at_once=True)
    done = await desk.ended(second)
    waiting = await desk.until(lambda: desk.batches.get(first.id, None), lambda now: now.record.errors)

    assert (waiting.state, done.state) == ("finalizing", "completed")
    assert waiting.record.errors[0]["code"] == "internal_error"
    assert "Its answers are kept, and it tries again" in waiting.record.errors[0]["message"]
    assert desk.batches.counts(waiting) == (2, 2, 0)
    assert f"batch_end_failed id={first.id} error=ValueError" in caplog.text
    faults.clear()
    ended = await desk.ended(first)
    assert (ended.state, ended.record.errors, desk.batches.counts(ended)) == ("completed", [], (2, 2, 0))
    assert len(list(desk.folder.contents.iterdir())) == 4  # no half file is left


async def test_what_the_server_failed_to_write_is_written_at_its_next_start(desk: Desk, monkeypatch):
    batch = desk.begin(2)
    faults = fails_at(batch, monkeypatch)
    await desk.runner.start(at_once=True)
    await desk.until(lambda: desk.batches.get(batch.id, None), lambda now: now.record.errors)
    await desk.runner.close()

    faults.clear()  # a version without the fault
    desk.new_runner()
    await desk.runner.start(at_once=True)

    assert desk.batches.counts(await desk.ended(batch)) == (2, 2, 0)


async def test_a_batch_that_is_never_written_is_given_up_when_its_time_to_be_kept_is_over(desk: Desk, monkeypatch):
    monkeypatch.setattr(ending, "AGAIN_S", (0.02,))
    batch = desk.begin(2)
    fails_at(batch, monkeypatch)
    await desk.runner.start(at_once=True)
    await desk.until(lambda: desk.batches.get(batch.id, None), lambda now: now.record.errors)

    desk.now += 86400 + KEPT_S
    failed = await desk.ended(batch)

    assert (failed.state, failed.record.counts) == ("failed", [2, 0, 0])


@pytest.mark.parametrize("fault", [MemoryError, OSError])
async def test_answers_outlast_a_machine_that_is_short_of_something_as_their_batch_ends(
    desk: Desk, monkeypatch, fault: type[Exception]
):
    monkeypatch.setattr(runner, "_TROUBLE_S", 0.01)
    batch, faults = desk.begin(2), [fault(), fault()]

    def faulty(lines: Any, batch_id: str, state: Any) -> Any:
        if faults:
            raise faults.pop()
        return output_lines(lines, batch_id, state)

    monkeypatch.setattr(ending, "output_lines", faulty)
    await desk.runner.start(at_once=True)
    done = await desk.ended(batch)
    assert (done.state, desk.batches.counts(done), faults) == ("completed", (2, 2, 0), [])


async def test_a_file_that_the_server_fails_to_read_fails_its_batch_alone(desk: Desk, monkeypatch):
    first, second = desk.begin(2), desk.begin(3)
    files = desk.files.content

    def faulty(file: StoredFile) -> Path:
        if file.id == first.record.input_file_id:
            raise ValueError("ours")
        return files(file)

    monkeypatch.setattr(desk.files, "content", faulty)
    await desk.runner.start(at_once=True)
    assert ((await desk.ended(first)).state, (await desk.ended(second)).state) == ("failed", "completed")


async def test_an_answer_whose_usage_cannot_be_read_costs_the_figures_and_not_the_answers(desk: Desk, caplog):
    desk.answer = b'{"usage": {"prompt_tokens": "many"}}'
    batch = desk.begin(2)
    await desk.runner.start(at_once=True)
    done = await desk.ended(batch)
    assert (done.state, done.record.usage, desk.batches.counts(done)) == ("completed", {}, (2, 2, 0))
    assert desk.files.content(desk.files.get(str(done.record.output_file_id), None)).read_bytes().count(b"many") == 2
    assert f"batch_usage_unknown id={batch.id}" in caplog.text


async def test_a_line_whose_model_was_unloaded_is_asked_again_and_not_for_ever(desk: Desk, monkeypatch):
    monkeypatch.setattr(under_way, "_AGAIN_S", (0.0,))
    given_up: Any = from_failed(Failed("job", "cancelled", "the load was given up"))
    assert isinstance(given_up, ApiError)
    assert (given_up.status, refused(given_up, "req").may_pass) == (499, True)
    assert not refused(ApiError(400, "no"), "req").may_pass
    desk.statuses = [499]
    once = desk.begin(1)
    await desk.runner.start(at_once=True)
    assert desk.batches.counts(await desk.ended(once)) == (1, 1, 0)
    desk.statuses = [499] * 9
    always = desk.begin(1)
    desk.runner.wake()
    assert desk.batches.counts(await desk.ended(always)) == (1, 0, 1)
    assert len(desk.statuses) == 9 - under_way.MOST_TRIES


async def test_lines_whose_model_has_no_room_for_now_wait_for_it_and_say_so(desk: Desk, monkeypatch):
    monkeypatch.setattr(under_way, "_ROOM_S", 0.02)
    busy: Any = from_failed(Failed("job", "memory_busy", "m needs 8 GiB, 4 of 9 GiB are free"))
    assert refused(busy, "req").short_of == "m needs 8 GiB, 4 of 9 GiB are free"
    assert refused(from_failed(Failed("job", "queue_full", "full")), "req").short_of is None
    desk.short_of = "m needs 8 GiB, 4 of 9 GiB are free"
    batch = desk.begin(3)

    await desk.runner.start(at_once=True)
    waiting = await desk.until(lambda: desk.batches.get(batch.id, None), lambda now: now.record.errors)
    assert "4 of 9 GiB are free. Its lines wait." in waiting.record.errors[0]["message"]
    await desk.until(lambda: desk.n_asked, lambda n: n > 3 * under_way.MOST_TRIES)
    assert desk.batches.counts(waiting) == (3, 0, 0)

    desk.short_of = None
    done = await desk.ended(batch)
    assert (desk.batches.counts(done), done.record.errors) == ((3, 3, 0), [])


async def test_a_line_that_is_given_back_before_it_is_asked_is_asked_later(desk: Desk):
    batch = desk.begin(2)
    for line in desk.runner._under_way.company(await _left(desk, batch)):
        desk.runner._under_way.begin(line)
    desk.runner.make_way("another", waits=False)  # nothing has run since
    await asyncio.gather(*desk.runner._under_way.tasks, return_exceptions=True)
    assert (desk.runner._under_way.lines, desk.n_asked) == ([], 0)

    await desk.runner.start(at_once=True)
    assert desk.batches.counts(await desk.ended(batch)) == (2, 2, 0)


async def _left(desk: Desk, batch: Batch) -> list[LeftLine]:
    """Its lines, read from its file."""
    await desk.runner._read(batch)
    return desk.batches.left("m", 4, but=[])


async def test_what_one_model_waits_for_is_told_while_lines_of_another_are_answered_and_not_after_it(desk: Desk):
    told = "a needs 8 GiB, 4 of 9 GiB are free"
    batch = desk.begin(2)
    lines = [LeftLine(batch.place, n, "anna", CHAT, model, b"{}", 0) for n, model in enumerate("ab", 1)]
    desk.batches.fill(batch, (Line(one.n, str(one.n), one.model, "", b"{}") for one in lines))
    answered = Answer(200, "req", desk.answer, may_pass=False)

    def errors() -> list[str]:
        return [one["message"] for one in desk.batches.get(batch.id, None).record.errors]

    await desk.runner._under_way._keep(lines[0], Answer(503, "req", b"", may_pass=True, short_of=told))
    await desk.runner._under_way._keep(lines[1], answered)
    assert errors() == [f"{told}. Its lines wait."]

    desk.new_runner()  # the server was started anew, and there is room
    await desk.runner._under_way._keep(lines[0], answered)
    assert errors() == []


async def test_files_and_batches_that_have_had_their_time_leave_the_disk_without_a_request(desk: Desk, monkeypatch):
    monkeypatch.setattr(runner, "_SWEEP_EVERY_S", 0.02)
    short, kept = desk.upload(1, lifetime_s=3600), desk.upload(1)
    places = [desk.files.content(file) for file in (short, kept)]
    batch = desk.begin(1)
    await desk.runner.start(at_once=True)
    await desk.ended(batch)

    desk.now += KEPT_S
    await desk.until(places[0].exists, lambda there: not there)
    assert places[1].exists()
    assert desk.batches.get(batch.id, None).state == "completed"  # its window has ended later

    desk.now += 86400
    await desk.until(lambda: _rows(desk), lambda n: n == 0)
    with pytest.raises(ApiError, match="No batch found"):
        desk.batches.get(batch.id, None)


def _rows(desk: Desk) -> int:
    with desk.folder.transaction() as db:
        return int(db.execute("SELECT COUNT(*) FROM batches").fetchone()[0])


async def test_a_file_that_was_read_in_part_before_a_crash_is_read_again_whole(desk: Desk):
    batch = desk.begin(3)
    with desk.folder.transaction() as db:
        db.execute(
            "INSERT INTO lines (batch, n, custom_id, model, beginning, body) VALUES (?, 1, 'old', 'm', '', '{}')",
            (batch.place,),
        )
    await desk.runner.start(at_once=True)
    assert desk.batches.counts(await desk.ended(batch)) == (3, 3, 0)


async def test_a_fault_of_ours_pauses_batches_and_does_not_end_them(monkeypatch, caplog):
    monkeypatch.setattr(runner, "_TROUBLE_S", 0.0)
    loop, looked_again = asyncio.get_running_loop(), asyncio.Event()

    class Store:
        n_looks = 0

        def open_batches(self) -> list[Any]:
            self.n_looks += 1
            if self.n_looks == 1:
                raise ValueError("ours")
            loop.call_soon_threadsafe(looked_again.set)
            return []

        def models_left(self) -> list[str]:
            return []

    store, none = Store(), None
    made: Any = BatchRunner(store, none, none, none, clock=time.time, count=lambda _: None)  # type: ignore[arg-type]

    await made.start(at_once=True)
    await asyncio.wait_for(looked_again.wait(), 10)
    await made.close()

    assert "batches_paused error=ValueError" in caplog.text
