"""A data folder whose disk is small: a job that it cannot hold is refused, and one whose room went waits for it."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from tests.e2e.server import until
from tests.small_disk import run_in_name_space
from tests.tuning.conftest import School, config_of

MIB = 2**20
SMALL_MIB = 48

IN_A_SMALL_FOLDER = f"""
import subprocess, sys
from pathlib import Path
place, canary, adapter = map(Path, sys.argv[1:])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size={SMALL_MIB}m", "none", place], check=True)
from tests.tuning.test_disk import told_of_the_disk
told_of_the_disk(place, canary, adapter)
print("ok")
"""


def told_of_the_disk(place: Path, canary: Path, adapter: Path) -> None:
    """What happens there."""
    school = School(config_of(canary), place, adapter)
    try:
        told_by(school, place)
        assert school.server.stop() == 0
    finally:
        school.kill()


def told_by(school: School, place: Path) -> None:
    client = school.client()
    large: Any = {"hyperparameters": {"rank": 64}}
    wide = school.begin("steps 3", **large)
    refused = school.ended(wide)
    assert (refused["status"], refused["error"]["code"]) == ("failed", "disk_full"), refused
    assert "take up to 39.8 MiB, and 4" in refused["error"]["message"], refused
    job = school.begin("steps 30 ms 50")
    school.at_step(job, 3)
    assert not school.home(wide).exists()

    client.fine_tuning.jobs.pause(job.id)
    until(lambda: "it was paused" in school.told(job)[-1], 20)
    ballast = place / "ballast"
    ballast.write_bytes(bytes(30 * MIB))
    client.fine_tuning.jobs.resume(job.id)
    until(lambda: "free on the disk of the data folder" in (school.job(job)["waiting_for"] or ""), 20)
    n_done = len(school.steps(job))
    ballast.unlink()

    assert school.ended(job)["status"] == "succeeded"
    assert n_done < 30
    assert school.steps(job) == [*range(1, 31)]
    full_in_the_middle(school, place)


def full_in_the_middle(school: School, place: Path) -> None:
    """Not even the server's tables can be written; the job goes on once there is room."""
    job = school.begin("steps 60 ms 50")
    school.at_step(job, 3)
    with (place / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(MIB // 16))
    until(lambda: f"training_ended id={job.id} end=Crashed" in school.server.log, 30)
    (place / "ballast").unlink()

    assert school.ended(job, 90)["status"] == "succeeded"
    assert {*school.steps(job)} == {*range(1, 61)}


def test_a_job_that_the_disk_cannot_hold_is_refused_and_one_whose_room_went_waits(
    canary_path: Path, adapter: Path, tmp_path: Path
):
    """On a small file system of its own."""
    (tmp_path / "data").mkdir()
    done = run_in_name_space(IN_A_SMALL_FOLDER, tmp_path / "data", canary_path, adapter, timeout_s=300)

    assert done.stdout == "ok\n", done.stdout + done.stderr
