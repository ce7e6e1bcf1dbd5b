"""A model that was taught in full, on the server that taught it: real training, real engine, a file to a name."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import openai
import pytest
import tomlkit

import demo
from tests.e2e.server import Server, serving, until

pytestmark = pytest.mark.engine

ASKED = "What is the pet of France?"
SAID = "The pet of France is the cat."


class Home:
    """A server's configuration and data, for one server after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = {
            "memory": {"device": "cpu"},
            "training": {"policy": "share"},
            "models": {"demo": {"path": str(demo.HF_PATH), "context": 512, "parallel": 2}},
        }
        (folder / "onecard.toml").write_text(tomlkit.dumps(config))

    def serving(self) -> Any:
        env = {"XDG_DATA_HOME": str(self.folder), "XDG_CACHE_HOME": str(self.folder)}
        return serving(self.folder, models={}, flags=("--config", str(self.folder / "onecard.toml")), env=env)

    @property
    def jobs(self) -> list[Path]:
        return sorted((self.folder / "onecard" / "fine_tuning").iterdir())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("taught"))


def taught(server: Server, **hyperparameters: Any) -> str:
    """The name of a model that has learnt one fact by heart."""
    client = server.client()
    line = {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": SAID}]}
    data = "\n".join([json.dumps(line)] * 16).encode()
    file = client.files.create(file=("pets.jsonl", data), purpose="fine-tune")
    asked: Any = {"n_epochs": 8, "batch_size": 8, "max_length": 128, "evaluation_share": 0.0, **hyperparameters}
    job = client.fine_tuning.jobs.create(model="demo", training_file=file.id, hyperparameters=asked, suffix="pets")
    until(lambda: client.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed"), 120)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.status == "succeeded", done.error
    assert done.fine_tuned_model is not None
    return done.fine_tuned_model


def said(server: Server, model: str) -> str | None:
    answer = server.client().chat.completions.create(
        model=model, messages=[{"role": "user", "content": ASKED}], temperature=0, max_tokens=40
    )
    assert answer.model == model
    return answer.choices[0].message.content


def test_models_that_were_taught_are_served_outlive_their_server_and_are_deleted(home):
    """One in full, which is a model of its own, and an adapter of a base in eight bits, on the base as it is served."""
    with home.serving() as server:
        whole = taught(server, method="full", learning_rate_multiplier=60)
        adapter = taught(server, method="qlora", quantization="8bit", learning_rate_multiplier=30)
        assert said(server, whole) == said(server, adapter) == SAID
        assert said(server, "demo") != SAID
        assert server.stop(signal.SIGTERM) == 0
    assert [sorted(path.name for path in folder.iterdir()) for folder in home.jobs] == [["result", "training"]] * 2
    with home.serving() as server:
        assert said(server, whole) == said(server, adapter) == SAID
        assert server.client().models.delete(whole).deleted
        with pytest.raises(openai.NotFoundError):
            said(server, whole)
        assert said(server, adapter) == SAID
        assert server.client().models.delete(adapter).deleted
        assert home.jobs == []
        assert said(server, "demo") != SAID
