"""A chat that arrives while its model is taught: TTFT against a usual swap and a step. `python -m bench.training`.

One server a policy, with room for one of two models or for the job. First the models take turns, which is the usual
swap. Then a job runs, and chats arrive at any moment of its steps: it saves, leaves, and comes back behind each.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import time
from typing import Any

import openai

from bench.serving import running
from bench.swap import first_token_ms, model_status
from demo import HF_PATH
from server.bench.figures import median

ROUNDS, STEPS = 5, 3
NAMES = ("chat", "other")
ROWS, BATCH = 600, 12
SETTINGS: dict[str, Any] = {
    "method": "lora", "n_epochs": 50, "batch_size": BATCH, "micro_batch": BATCH, "max_length": 256,
    "gradient_checkpointing": False, "evaluation_share": 0.0, "cut_long": True,
}  # fmt: skip


class Taught:
    """A job on a server."""

    def __init__(self, url: str) -> None:
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        words = " ".join(f"word {n}" for n in range(45))
        line = {"messages": [{"role": "user", "content": words}, {"role": "assistant", "content": words}]}
        data = "\n".join([json.dumps(line)] * ROWS).encode()
        file = self._client.files.create(file=("rows.jsonl", data), purpose="fine-tune")
        hyperparameters: Any = SETTINGS
        self.id = self._client.fine_tuning.jobs.create(
            model=NAMES[0], training_file=file.id, hyperparameters=hyperparameters
        ).id

    def told(self) -> dict[str, Any]:
        """The job, with the fields that are ours. Raises RuntimeError where it has failed."""
        job = self._client.fine_tuning.jobs.retrieve(self.id).model_dump()
        if job["status"] == "failed":
            raise RuntimeError(job["error"]["message"])
        return job

    def step(self) -> int:
        """How many it has done."""
        return int((self.told()["progress"] or {"step": 0})["step"])

    def step_s(self) -> float:
        """Of some steps, once it runs, and behind them."""
        began, first = self._at(self.step() + 1)
        ended, last = self._at(first + STEPS)
        return (ended - began) / (last - first)

    def reserved_bytes(self) -> int:
        """Once its file is read."""
        while (found := int((self.told()["memory"] or {"host_bytes": 0})["host_bytes"])) == 0:
            time.sleep(0.05)
        return found

    def cancel(self) -> None:
        """End it."""
        self._client.fine_tuning.jobs.cancel(self.id)

    def _at(self, step: int) -> tuple[float, int]:
        deadline = time.monotonic() + 120
        while (at := self.step()) < step:
            if time.monotonic() > deadline:
                raise RuntimeError(f"step {step} has not come: {self.told()}")
            time.sleep(0.01)
        return time.monotonic(), at


def measure(policy: str, budget: int) -> dict[str, list[float]]:
    """Seconds: usual swaps, steps, and first tokens of chats that came while the job ran."""
    found: dict[str, list[float]] = {"swap": [], "step": [], "ttft": []}
    with running(_config(str(budget), policy)) as server:
        for name in (*NAMES, *NAMES * ROUNDS):
            found["swap"].append(first_token_ms(server.url, name) / 1000)
        found["swap"] = found["swap"][len(NAMES) :]  # a first load of all measures the machine
        job = Taught(server.url)
        for seed in range(ROUNDS):
            found["step"].append(job.step_s())
            time.sleep(random.Random(seed).uniform(0, found["step"][-1]))
            found["ttft"].append(first_token_ms(server.url, NAMES[0]) / 1000)
        job.cancel()
    return found


def main() -> None:
    """Print a line a policy."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_DATA_HOME"] = folder
        budget = _budget()
        for policy in ("idle-only", "share"):
            found = measure(policy, budget)
            bound = max(found["swap"]) + max(found["step"])
            told = ", ".join(f"{name} {_told(values)}" for name, values in found.items())
            print(f"{policy}: {told} s; the longest TTFT is {max(found['ttft']) / bound:.2f} of swap and step")


def _told(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _budget() -> int:
    """For the job, or for one of the models and not both."""
    with running(_config("4GiB", "share")) as server:
        first_token_ms(server.url, NAMES[0])
        model = int(model_status(server.url, NAMES[0])["predicted_bytes"])
        job = Taught(server.url)
        needed = job.reserved_bytes()
        job.cancel()
    print(f"a model {model / 2**20:.0f} MiB, the job {needed / 2**20:.0f} MiB")
    if needed > 1.9 * model:
        raise RuntimeError("the job is so large that both models fit beside each other where it fits")
    return max(int(1.02 * needed), int(1.6 * model))


def _config(budget: str, policy: str) -> str:
    models = "".join(f'[models.{name}]\npath = "{HF_PATH}"\ncontext = 512\nparallel = 1\n' for name in NAMES)
    rules = f'[scheduler]\nmin_residency_s = 0\n[training]\npolicy = "{policy}"\nidle_after_s = 1\n'
    return f'[memory]\ndevice = "cpu"\nbudget = "{budget}"\n{rules}{models}'


if __name__ == "__main__":
    main()
