"""A stand-in for the process that trains: it counts steps, keeps checkpoints, and does what its training file says.

The first message of the training file directs it, words in any order:
    steps N       -> N steps, 20 where it does not say
    ms N          -> N milliseconds each
    save N        -> a checkpoint every N steps, 5 where it does not say
    abort-at N    -> abort() in the middle of step N, each time it comes there
    abort-once N  -> the same, and only the first time
    halve-at N    -> MicroBatchHalved before step N
    fail TEXT...  -> TrainFailed with the rest of the line
    deaf          -> a `Leave` is not heard
    full          -> a `Leave` finds the disk full
    whole         -> a copy of its base is what it makes
Else the adapter in the folder ONECARD_TEST_ADAPTER is what it makes. Every step that was done is a line in `steps.log`.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import socket
import time
from pathlib import Path

from backends.border.wire import Decoder, FrameEncoder, receive, train_command_decoder
from backends.messages.training import (
    CheckpointSaved,
    Leave,
    MicroBatchHalved,
    Recipe,
    Train,
    TrainCommand,
    TrainEvaluated,
    TrainFailed,
    TrainFinished,
    TrainLeft,
    TrainReport,
    TrainStarted,
    TrainStep,
)


class Line:
    """The process's end of its socket."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._encoder = FrameEncoder()
        self._decoder: Decoder[TrainCommand] = train_command_decoder()

    def say(self, report: TrainReport) -> None:
        self._socket.sendall(self._encoder.frame(report))

    def hear(self) -> list[TrainCommand]:
        commands = receive(self._socket, self._decoder)
        if commands is None:
            os._exit(0)
        return commands

    def is_told_to_leave(self) -> bool:
        if not select.select([self._socket], [], [], 0)[0]:
            return False
        return any(isinstance(command, Leave) for command in self.hear())


def directions(recipe: Recipe) -> tuple[dict[str, int], str | None]:
    line = json.loads(Path(recipe.training_file).read_text().splitlines()[0])
    first = line["messages"][0]["content"] if recipe.form == "chat" else ""
    words, _, fails = first.partition("fail ")
    parts = words.split()
    numbers = {word: int(parts[n + 1]) for n, word in enumerate(parts[:-1]) if parts[n + 1].isdecimal()}
    return {**numbers, **dict.fromkeys({"deaf", "full", "whole"} & {*parts}, 1)}, fails or None


class Course:
    """A training from its last checkpoint to its end."""

    def __init__(self, recipe: Recipe, line: Line) -> None:
        self.recipe, self.line = recipe, line
        self.wants, self.fails = directions(recipe)
        self.n_steps = self.wants.get("steps", 20)
        self.checkpoints = Path(recipe.folder) / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.done = max((int(one.name) for one in self.checkpoints.iterdir() if one.name.isdecimal()), default=0)

    def run(self) -> None:
        say = self.line.say
        said = {"steps": self.n_steps, "examples": 3, "evaluation_examples": 0, "trainable_parameters": 7}
        say(TrainStarted(**said, resumed_step=self.done))
        if self.fails is not None:
            say(TrainFailed(self.fails, "bad_data"))
            return
        for step in range(self.done + 1, self.n_steps + 1):
            if not self.wants.get("deaf") and self.line.is_told_to_leave():
                if self.wants.get("full"):
                    say(TrainFailed("no space left on device", "disk"))
                    return
                self.save(step - 1)
                say(TrainLeft(step - 1))
                return
            self.step(step)
        self.save(self.n_steps)
        say(TrainEvaluated(self.recipe.n_epochs, self.n_steps, 0.25, 1.284, 0.9, best=True))
        say(TrainFinished(str(self.result()), 10 * self.n_steps, self.n_steps))

    def step(self, step: int) -> None:
        if step == self.wants.get("halve-at"):
            self.line.say(MicroBatchHalved(1, self.recipe.effective_batch, "no memory for 2"))
        time.sleep(self.wants.get("ms", 0) / 1000)
        once = Path(self.recipe.folder) / "aborted"
        if step == self.wants.get("abort-at") or (step == self.wants.get("abort-once") and not once.exists()):
            once.touch()
            os.abort()
        with (Path(self.recipe.folder) / "steps.log").open("a") as log:
            log.write(f"{step}\n")
        left_s = (self.n_steps - step) * self.wants.get("ms", 0) / 1000
        self.line.say(TrainStep(step, 1.0 / step, 1e-4, 10 * step, left_s))
        if step % self.wants.get("save", 5) == 0:
            self.save(step)

    def save(self, step: int) -> None:
        folder = self.checkpoints / str(step)
        if not folder.exists():
            folder.mkdir()
            self.line.say(CheckpointSaved(step, str(folder)))

    def result(self) -> Path:
        result = Path(self.recipe.folder) / "result"
        shutil.rmtree(result, ignore_errors=True)
        shutil.copytree(self.recipe.base if self.wants.get("whole") else os.environ["ONECARD_TEST_ADAPTER"], result)
        return result


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    line = Line(parser.parse_args().fd)
    (first,) = line.hear()
    assert isinstance(first, Train)
    Course(first.recipe, line).run()


if __name__ == "__main__":
    main()
