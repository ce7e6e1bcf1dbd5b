"""One model runs out of memory beside another, over real workers: who asked for too much is told, and no other."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.bnb.short_of_memory import DEEP
from tests.e2e.server import Server, serving
from tests.models import canary_kv

pytestmark = pytest.mark.engine

SEEDS = (1, 2, 3)
ENV = {"ONECARD_TEST_ENGINE": "tests.bnb.short_of_memory:load_short", "ONECARD_SCHEDULER__TEMPLATE_PROCESS": "false"}


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """CANARY-KV as a file, and as a folder whose worker finds no memory for tokens from `DEEP` on."""
    folder = tmp_path_factory.mktemp("short")
    models = {"file": canary_kv.build(folder / "kv.gguf", "full"), "folder": canary_kv.build_folder(folder / "kv")}
    with serving(folder, models=models, flags=("--context", "1024", "--parallel", "4"), env=ENV) as running:
        yield running


def ask(client: openai.OpenAI, model: str, seed: int, *, n_prompt: int = 130, n: int = 30) -> str:
    fields: Any = {"extra_body": {"ignore_eos": True, "cache_prompt": False}}
    prompt = canary_kv.prompt(seed, n_prompt)
    return client.completions.create(model=model, prompt=prompt, max_tokens=n, temperature=0, **fields).choices[0].text


def test_a_job_without_memory_costs_neither_its_neighbours_nor_another_model(short: Server) -> None:
    client = short.client()
    asked = [(model, seed) for model in ("file", "folder") for seed in SEEDS]
    alone = {each: ask(client, *each) for each in asked}
    long = ask(client, "file", 9, n=800)
    workers = {worker.pid for worker in short.workers()}
    assert len(workers) == 2

    with ThreadPoolExecutor(8) as clients:
        beside = clients.submit(ask, client, "file", 9, n=800)
        deep = clients.submit(ask, client, "folder", 8, n_prompt=DEEP + 100)
        together = {each: clients.submit(ask, client, *each) for each in asked}
        with pytest.raises(openai.APIStatusError) as caught:
            deep.result()

    assert caught.value.code == "out_of_memory"
    assert "no memory is left to go on: PyTorch asked for" in caught.value.message
    assert {each: answer.result() for each, answer in together.items()} == alone
    assert beside.result() == long
    assert {each: ask(client, *each) for each in asked} == alone
    assert {worker.pid for worker in short.workers()} == workers
