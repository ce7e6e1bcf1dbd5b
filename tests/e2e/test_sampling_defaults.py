"""What a model's files and its configuration say of sampling takes part in every request that leaves it out."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import demo
from backends.files import sampling_defaults
from tests.e2e.server import Server, serving
from tests.quantize.conftest import make

pytestmark = pytest.mark.engine
IN_FILE = {
    "do_sample": True,
    "temperature": 0.0,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": "a lot",
    "repetition_penalty": 1.05,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 4},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 16},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model whose makers want it greedy, with one value that is nonsense."""
    folder = Path(shutil.copytree(demo.HF_PATH, tmp_path_factory.mktemp("sampling") / "m"))
    told = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(told | IN_FILE))
    return folder


@pytest.fixture(scope="module")
def server(backend: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("server")
    path = folder if backend == "bnb" else make(folder, place, "F16", name="m").written[0]
    config = place / "onecard.toml"
    config.write_text(
        f'[models.plain]\npath = "{path}"\ncontext = 512\n'
        f'[models.set]\npath = "{path}"\ncontext = 512\nsampling = {{ temperature = 0.5, frequency_penalty = 0.1 }}\n'
    )
    with serving(place, models={}, flags=("--config", str(config))) as running:
        yield running


def ask(server: Server, path: str, model: str, **more: object) -> tuple[str | None, dict[str, Any]]:
    """The header that tells of defaults, and the answer."""
    body = json.dumps({"model": model, **BODIES[path], **more}).encode()
    request = urllib.request.Request(f"{server.url}{path}", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers.get("x-onecard-sampling"), json.loads(response.read())


@pytest.mark.parametrize("path", BODIES)
def test_every_surface_takes_the_files_defaults_and_says_so(server: Server, path: str) -> None:
    told, answer = ask(server, path, "plain")

    assert told == "temperature=0,top_p=0.9,top_k=7,repetition_penalty=1.05 (model)"
    if path == "/v1/responses":
        assert (answer["temperature"], answer["top_p"]) == (0.0, 0.9)


def test_a_configured_default_wins_over_the_file_and_a_request_over_both(server: Server) -> None:
    told, answer = ask(server, "/v1/responses", "set", top_p=0.25)

    assert told == "temperature=0.5,frequency_penalty=0.1 (config); top_k=7,repetition_penalty=1.05 (model)"
    assert (answer["temperature"], answer["top_p"]) == (0.5, 0.25)
    own = {"temperature": 1, "top_p": 1, "top_k": 0, "repetition_penalty": 1, "frequency_penalty": 0}
    assert ask(server, "/v1/chat/completions", "set", **own)[0] is None


def test_greedy_stays_greedy(server: Server) -> None:
    def text(**more: object) -> str:
        answer = ask(server, "/v1/chat/completions", "plain", max_tokens=12, **more)[1]
        return str(answer["choices"][0]["message"]["content"])

    assert text(seed=1) == text(seed=2) == text(seed=3)
    assert len({text(seed=seed, temperature=2, top_k=0, top_p=1) for seed in range(6)}) > 1


def test_models_and_status_list_the_defaults_and_what_was_ignored(server: Server, backend: str) -> None:
    models = {model["id"]: model for model in server.get("/v1/models")["data"]}
    status = {model["name"]: model for model in server.get("/v1/status")["models"]}

    assert models["plain"]["sampling"] == {"temperature": 0, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.05}
    assert models["set"]["sampling"]["temperature"] == 0.5
    assert {name: status[name]["sampling"] for name in models} == {name: models[name]["sampling"] for name in models}
    assert server.get("/props?model=plain")["default_generation_settings"]["params"]["top_k"] == 7
    if backend == "bnb":  # the converter leaves nonsense out, and says so then
        assert "min_p = 'a lot' is ignored" in models["plain"]["remarks"][0]


@pytest.mark.parametrize(
    ("document", "values", "n_remarks"),
    [
        (None, {}, 0),
        ([], {}, 1),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20}, {"temperature": 0.6, "top_p": 0.95, "top_k": 20}, 0),
        ({"do_sample": False, "temperature": 0.7}, {"temperature": 0.0}, 0),
        ({"temperature": 10**400, "top_p": float("nan"), "top_k": 2.5, "min_p": True}, {}, 4),
        ({"temperature": -1, "top_k": -1}, {"top_k": 0}, 1),
        ({"penalty_alpha": 0.5, "eta_cutoff": None, "epsilon_cutoff": 0.0}, {}, 1),
        ({"typical_p": 0.5, "mirostat": 2, "xtc_probability": 7}, {"typical_p": 0.5, "mirostat": 2}, 1),
    ],
)
def test_nonsense_in_a_file_is_ignored_by_name(document: Any, values: dict[str, float], n_remarks: int) -> None:
    found = sampling_defaults.of_folder(document)
    assert found.values == values
    assert len(found.remarks) == n_remarks
