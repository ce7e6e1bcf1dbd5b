"""Checkpoints on the disk: whole or not there, also when its process is killed, and where the disk is full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from backends.training.checkpoints import Checkpoints, State
from tests.small_disk import run_in_name_space

OLD, NEW = b"old", b"newer"


def fill_with(data: bytes, folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(data)


def write(folder: Path, step: int, data: bytes) -> None:
    Checkpoints(folder).write(State(step=step), lambda aside: fill_with(data, aside))


def kept(folder: Path) -> dict[int, bytes]:
    """What the next process finds."""
    return {one.state.step: (one.folder / "weights.safetensors").read_bytes() for one in Checkpoints(folder).all()}


KILLED = """
import os, sys
from pathlib import Path
from tests.training.test_checkpoints import NEW, OLD, kept, write

WORDS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "open", "shutil.rmtree")
root, n_kills, found = Path(sys.argv[1]), 0, set()
for last in range(1, 200):
    folder = root / str(last)
    write(folder, 6, OLD)
    write(folder, 7, OLD)
    child = os.fork()
    if not child:
        left = last

        def end_before(event, arguments):
            global left
            left -= event in WORDS
            if not left:
                os._exit(9)  # nothing runs behind it, as after SIGKILL

        sys.addaudithook(end_before)
        write(folder, 7, NEW)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    there = kept(folder)
    assert there in ({6: OLD, 7: OLD}, {6: OLD, 7: NEW}), (last, there)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")], last
    found.add(there[7])
    if not status:
        break
    n_kills += 1
assert found == {OLD, NEW} and there[7] == NEW
print(n_kills)
"""


def test_a_checkpoint_that_is_written_again_is_the_old_or_the_new_one_wherever_that_ends(tmp_path):
    """The process ends before the first thing that it asks of the disk, before the second, and so on."""
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=Path.cwd())

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 8


def test_the_newest_of_a_step_counts_and_the_older_goes(tmp_path):
    write(tmp_path, 3, OLD)
    write(tmp_path, 3, NEW)
    write(tmp_path, 3, OLD)

    assert kept(tmp_path) == {3: OLD}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003-2"]


def test_what_others_hide_beside_checkpoints_stops_no_job(tmp_path):
    write(tmp_path, 3, OLD)
    (tmp_path / ".DS_Store").touch()
    (tmp_path / ".gone-step-00000002").mkdir()

    assert kept(tmp_path) == {3: OLD}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]


def test_one_whose_files_are_not_those_that_were_written_is_not_taken(tmp_path):
    write(tmp_path, 3, OLD)
    write(tmp_path, 4, OLD)
    (tmp_path / "step-00000004" / "weights.safetensors").write_bytes(b"half")

    assert kept(tmp_path) == {3: OLD}


FULL = """
import subprocess, sys
from pathlib import Path
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", sys.argv[1]], check=True)
from backends.training.errors import TrainError
from tests.training.test_checkpoints import kept, write
folder = Path(sys.argv[1]) / "checkpoints"
write(folder, 1, bytes(60_000))
try:
    write(folder, 2, bytes(400_000))
except TrainError as error:
    print(error.code, error.message)
assert kept(folder) == {1: bytes(60_000)}
assert [path.name for path in folder.iterdir()] == ["step-00000001"]
"""


def test_a_full_disk_is_told_with_its_numbers_and_nothing_half_written_stays(tmp_path):
    """On a file system of 256 KiB."""
    done = run_in_name_space(FULL, tmp_path)

    assert done.returncode == 0, done.stderr
    told = "disk step-00000002 cannot be written: no space left on device behind 0.2 MiB of it, with 0.0 MiB free. "
    assert done.stdout.startswith(told), done.stdout
    assert "make room" in done.stdout
