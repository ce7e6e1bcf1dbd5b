"""One real child process and its handle: work, cancel, crash, hang, and never a job without its one terminal event."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends.border.child import environment
from backends.border.worker import Timeouts, Worker
from backends.messages import (
    ChatPrompt,
    Detokenize,
    Failed,
    Finished,
    Generate,
    Step,
    TextPrompt,
    Tokenize,
    Tokenized,
)
from tests.worker.conftest import QUICK, Starter, ask, ends, opened, process_file


async def test_worker_loads_answers_and_stops(start: Starter) -> None:
    worker, ear = await start()

    worker.submit(ask("a", "hello big world"))
    ended = await ear.terminal("a")
    await worker.stop()

    assert ear.text("a") == "echo: hello big world"
    assert ended == Finished(id="a", prompt_tokens=15, completion_tokens=4)
    assert ear.how is not None
    assert ear.how.code is None


async def test_many_jobs_at_once_do_not_mix(start: Starter) -> None:
    worker, ear = await start()
    for i in range(4):
        worker.submit(ask(f"j{i}", f"number {i} of four"))
    for i in range(4):
        await ear.terminal(f"j{i}")
        assert ear.text(f"j{i}") == f"echo: number {i} of four"


async def test_jobs_without_a_step_are_answered(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(Tokenize("t", TextPrompt("hi")))
    worker.submit(Detokenize("d", [104, 105]))
    await ear.terminal("t")
    await ear.terminal("d")
    assert Tokenized(id="t", tokens=[104, 105]) in ear.events
    assert ear.text("d") == "hi"


async def test_refused_job_fails_alone(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(ask("bad", "!refuse too odd"))
    worker.submit(ask("good", "fine"))

    assert await ear.terminal("bad") == Failed(id="bad", code="invalid_value", message="too odd", param="prompt")
    assert isinstance(await ear.terminal("good"), Finished)


async def test_job_that_cannot_be_encoded_fails_alone(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(Generate("bad", ChatPrompt(messages=[{"role": "user", "content": "\ud800"}])))
    worker.submit(ask("good", "fine"))

    bad = await ear.terminal("bad")
    assert isinstance(bad, Failed)
    assert bad.code == "invalid_value"
    assert isinstance(await ear.terminal("good"), Finished)


# Cancel


async def test_cancel_takes_effect_between_steps(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(ask("a", "!slow 20 10000"))
    await ear.until_text("a")

    worker.cancel("a")
    ended = await ear.terminal("a")

    assert isinstance(ended, Failed)
    assert ended.code == "cancelled"


async def test_cancel_reaches_a_job_still_in_preparation_and_the_one_behind_it(start: Starter, tmp_path: Path) -> None:
    worker, ear = await start()
    os.mkfifo(pipe := tmp_path / "pipe")
    worker.submit(ask("slow", f"!prepare-till {pipe}"))
    worker.submit(ask("behind", f"!prepare-till {pipe}"))
    held = await opened(pipe)

    worker.cancel("behind")
    worker.cancel("slow")
    for job_id in ("behind", "slow"):
        ended = await ear.terminal(job_id)
        assert isinstance(ended, Failed)
        assert ended.code == "cancelled"
    os.close(held)  # until now the preparation went on: its job did not wait for it

    worker.submit(ask("next", "fine"))
    assert isinstance(await ear.terminal("next"), Finished)
    assert len(ear.terminals("slow")) == len(ear.terminals("behind")) == 1


async def test_cancel_after_the_end_is_harmless(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(ask("a", "short"))
    await ear.terminal("a")
    worker.cancel("a")
    worker.cancel("never seen")
    worker.submit(ask("b", "next"))
    await ear.terminal("b")
    assert len(ear.terminals("a")) == 1


# Dying


async def test_abort_fails_every_job_with_the_signal(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(ask("by", "!slow 5 100000"))
    await ear.until_text("by")
    worker.submit(ask("bad", "!crash"))

    how = await ear.until_exit()

    assert how.code == "worker_crashed"
    assert "SIGABRT" in how.message
    assert worker.pid is not None
    for job_id in ("by", "bad"):
        (ended,) = ear.terminals(job_id)
        assert isinstance(ended, Failed)
        assert ended.code == "worker_crashed"
    assert ear.text("bad") in ("one", "one two")  # the last frame of quick text may be lost with its worker


async def test_exception_in_a_step_ends_the_worker_and_keeps_the_prompt_out(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(ask("a", "!raise canary-7351"))
    how = await ear.until_exit()
    assert how.code == "worker_crashed"
    assert "an error in onecard or its library, in engine.py:" in how.message
    assert "secret" not in how.message
    assert "canary" not in how.message


async def test_a_listener_that_fails_once_ends_the_worker_and_its_jobs(
    start: Starter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    worker, ear = await start()
    hear, faults = ear.on_step, [ZeroDivisionError()]

    def stumble(worker: Worker, step: Step) -> None:
        if faults:
            raise faults.pop()
        hear(worker, step)

    monkeypatch.setattr(ear, "on_step", stumble)
    worker.submit(ask("a", "!slow 5 100000"))
    how = await ear.until_exit()

    assert how.code == "worker_crashed"
    (ended,) = ear.terminals("a")
    assert isinstance(ended, Failed)
    assert "ZeroDivisionError" in caplog.text


async def test_kill_from_outside_is_noticed_at_once(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(ask("a", "!slow 10 100000"))
    await ear.until_text("a")
    assert worker.pid is not None

    began = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    ended = await ear.terminal("a")

    assert time.monotonic() - began < 6, "before silence would have told"
    assert isinstance(ended, Failed)
    assert "SIGKILL" in ended.message
    assert not process_file(worker.pid).exists(), "the child is not reaped"


async def test_stopped_process_counts_as_hung(start: Starter) -> None:
    worker, ear = await start()
    worker.submit(ask("a", "!slow 10 100000"))
    await ear.until_text("a")
    assert worker.pid is not None

    began = time.monotonic()
    os.kill(worker.pid, signal.SIGSTOP)
    how = await ear.until_exit()

    assert how.code == "worker_hung"
    assert time.monotonic() - began < QUICK.pong_s + 2
    assert [e.code for e in ear.terminals("a") if isinstance(e, Failed)] == ["worker_hung"]


LATE = "import os, sys, time; time.sleep(float(sys.argv[1])); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"


class SlowStart:
    """Starts workers as on a crowded machine: the process is there long before it can answer."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    async def copy(self, *, socket_fd: int, stderr_fd: int) -> int:
        return self.begin(socket_fd, stderr_fd)

    def begin(self, socket_fd: int, stderr_fd: int) -> int:
        worker = ["-P", "-m", "backends.border.worker_main", "--fd", str(socket_fd), "--parent", str(os.getpid())]
        command = [sys.executable, "-c", LATE, str(self.delay_s), *worker]
        child = subprocess.Popen(command, pass_fds=[socket_fd], stderr=stderr_fd, env=environment(os.environ))
        child.returncode = 0  # the worker's handle reaps it
        return child.pid


async def test_a_process_that_is_slow_to_start_is_not_taken_for_hung(start: Starter) -> None:
    timeouts = Timeouts(start_s=20.0, ping_every_s=0.05, pong_s=0.5, stop_s=1.0)
    worker, ear = await start(timeouts=timeouts, copier=SlowStart(1.0))
    worker.submit(ask("a", "hello"))
    await ear.terminal("a")
    assert ear.text("a") == "echo: hello"


async def test_a_process_that_never_comes_up_counts_as_hung(start: Starter) -> None:
    timeouts = Timeouts(start_s=0.5, ping_every_s=0.05, pong_s=20.0)
    _, ear = await start(timeouts=timeouts, ready=False, copier=SlowStart(1000.0))
    how = await ear.until_exit()
    assert how.code == "worker_hung"
    assert "gave no sign of life for 0.5 s" in how.message


def test_a_silent_worker_is_noticed_within_ten_seconds_by_default() -> None:
    defaults = Timeouts()
    assert defaults.pong_s + 2 * defaults.ping_every_s <= 10


async def test_endless_step_counts_as_hung_although_pings_are_answered(start: Starter) -> None:
    timeouts = Timeouts(ping_every_s=0.05, pong_s=10.0, step_s=0.5, stop_s=1.0, linger_s=0.5)
    worker, ear = await start(timeouts=timeouts)
    worker.submit(ask("a", "!hang"))

    how = await ear.until_exit()

    assert how.code == "worker_hung"
    assert "stuck in one step" in how.message


async def test_long_load_answers_pings(start: Starter) -> None:
    timeouts = Timeouts(load_s=20.0, ping_every_s=0.1, pong_s=1.5, stop_s=1.0)
    _, ear = await start("slow 2", timeouts=timeouts)
    assert ear.how is None
    assert ear.progress[0] == 0.0
    assert ear.progress[-1] == 1.0


async def test_broken_frame_kills_the_worker_alone(start: Starter) -> None:
    good, good_ear = await start()
    _, ear = await start("garbage", ready=False)

    how = await ear.until_exit()

    assert how.code == "worker_crashed"
    assert "broken message" in how.message
    good.submit(ask("a", "still here"))
    assert isinstance(await good_ear.terminal("a"), Finished)


# Failing to load


@pytest.mark.parametrize(
    ("directive", "code", "words"),
    [
        ("fail the file /opt/models/x.gguf has no soul at 0x7f001122", "load_failed", "the file x.gguf has no soul"),
        ("oom not enough", "out_of_memory", "not enough"),
        ("raise", "load_failed", "could not load it: a library stumbled over model0.gguf. hint"),
        ("crash", "load_failed", "SIGABRT (its library gave up): llama.cpp found that n_embd > 0 does not hold"),
    ],
)
async def test_failed_load_is_a_sentence(start: Starter, tmp_path: Path, directive: str, code: str, words: str) -> None:
    _, ear = await start(directive, ready=False)
    how = await ear.until_exit()
    assert how.code == code
    assert words in how.message
    assert str(tmp_path) not in how.message
    assert "0x7f" not in how.message


async def test_assertion_of_a_library_is_told_without_its_path(start: Starter, tmp_path: Path) -> None:
    _, ear = await start("crash", ready=False)
    how = await ear.until_exit()
    assert "llama.cpp found that n_embd > 0 does not hold" in how.message
    assert str(tmp_path) not in how.message


async def test_why_a_load_failed_is_heard_by_a_server_that_speaks_before_it_listens(start: Starter) -> None:
    """The process is gone before its last frame is read, and something is sent to it in between."""
    worker, ear = await start("fail not a model", ready=False)
    assert worker.pid is not None
    assert ends(worker.pid, within_s=20)  # the loop stands still meanwhile, as on a crowded machine

    worker.keep(0)
    how = await ear.until_exit()

    assert how.code == "load_failed"
    assert how.message == "not a model"


async def test_load_without_an_end_is_cut(start: Starter) -> None:
    timeouts = Timeouts(load_s=0.5, ping_every_s=0.1, pong_s=10.0)
    _, ear = await start("hang", timeouts=timeouts, ready=False)
    how = await ear.until_exit()
    assert how.code == "worker_hung"
    assert "did not finish loading" in how.message


async def test_stop_does_not_wait_for_a_load(start: Starter) -> None:
    worker, ear = await start("hang", ready=False)
    began = time.monotonic()
    await worker.stop()
    assert time.monotonic() - began < Timeouts().stop_s
    assert ear.how is not None
    assert ear.how.code is None


async def test_stop_kills_a_worker_that_does_not_listen(start: Starter) -> None:
    worker, ear = await start(timeouts=Timeouts(stop_s=0.3, linger_s=0.3))
    worker.submit(ask("a", "!hang"))
    await ear.until_text("a")

    began = time.monotonic()
    await worker.stop()

    assert time.monotonic() - began < 30
    (ended,) = ear.terminals("a")
    assert isinstance(ended, Failed)
    assert ended.code == "draining"


async def test_engine_is_told_only_what_has_room_or_the_worker_ends(start: Starter) -> None:
    worker, ear = await start(parallel=1)
    worker.submit(ask("a", "!slow 20 100000"))
    await ear.until_text("a")
    worker.submit(ask("b", "one too many"))
    assert (await ear.until_exit()).code == "worker_crashed"
