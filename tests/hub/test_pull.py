"""`onecard pull`: what comes, how it is checked, where it goes on, and what is said."""

import json
import random
import re

import pytest

from tests.e2e.server import serving
from tests.hub.conftest import CHAT, FOLDER, WORLD

HALF = len(CHAT) // 2


def cached(tmp_path, repo="org/chat"):
    folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    return {path.name: path.read_bytes() for path in folder.glob("snapshots/*/*")}


def test_the_largest_that_fits_comes_and_its_plan_is_shown_first(pulled, world, tmp_path):
    done = pulled("pull", "org/chat")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "hf:org/chat:F16\n"
    assert cached(tmp_path) == {"chat-F16.gguf": CHAT}
    lines = done.stderr.splitlines()
    shown = next(i for i, line in enumerate(lines) if line.startswith("F16: 3.5 MiB on disk; fits: "))
    fetching = next(i for i, line in enumerate(lines) if line.startswith("fetching chat-F16.gguf"))
    assert shown < fetching
    ranges = [asked for name, asked in world.asked if name == "chat-F16.gguf"]
    assert ranges[0] == f"bytes=0-{2 * 2**20 - 1}"  # the header only
    world.asked.clear()
    again = pulled("pull", "hf:org/chat:F16")
    assert (again.returncode, world.asked) == (0, [])
    assert "was there already" in again.stderr
    assert json.loads(pulled("list", "--json").stdout)["cache"][0]["reference"] == "hf:org/chat:F16"


def test_a_model_comes_with_its_projector(pulled, tmp_path):
    done = pulled("pull", "org/seer:F16")
    assert (done.returncode, done.stdout) == (0, "hf:org/seer:F16\n")
    assert cached(tmp_path, "org/seer") == {"seer-F16.gguf": CHAT, "mmproj-seer-F16.gguf": b"GGUF" * 50}


def test_a_folder_comes_without_what_onecard_does_not_read(pulled, tmp_path):
    done = pulled("pull", "org/folder", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["reference"] == "hf:org/folder"
    assert told["fit"]["fits"] is True
    assert told["fetched_bytes"] == told["size_bytes"] == sum(map(len, FOLDER.values()))
    assert cached(tmp_path, "org/folder") == FOLDER


@pytest.mark.parametrize(
    "address",
    [
        "{0}/org/chat/blob/main/chat-F16.gguf",
        "{0}/org/chat/resolve/main/chat-F16.gguf?download=true",
        "{0}/org/chat?show_file_info=chat-F16.gguf",
    ],
)
def test_addresses_of_pages_as_people_paste_them(pulled, world, tmp_path, address):
    done = pulled("pull", address.format(world.url))
    assert (done.returncode, done.stdout) == (0, "hf:org/chat:F16\n"), done.stderr
    assert cached(tmp_path) == {"chat-F16.gguf": CHAT}


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["org/chat:Q2_K"], 2, r"org/chat has no Q2_K. hint: it has F16, Q8_0"),
        (["org/chat", "--quant", "Q4"], 2, r"org/chat has no Q4. hint: it has F16, Q8_0"),
        (["org/absent"], 1, r"has no repository org/absent, or it is private. hint: .*search absent"),
        (["org/chat@v9"], 1, r"org/chat has no revision v9"),
        (["org/secret"], 1, r"org/secret is gated: .*accept them at .*/org/secret, and set HF_TOKEN"),
        (["org/lora"], 2, r"org/lora is a LoRA adapter"),
        (["org/pickled"], 2, r"pickled weights only"),
        (["org/away"], 1, r"a name that leads elsewhere: \.\./\.\./\.\./\.\./away.gguf"),
        (["org/loud"], 1, r"a name that leads elsewhere: \?\[31mred-Q4_0.gguf"),
        (["https://example.com/org/chat"], 2, r"models come from huggingface.co, not from example.com"),
        (["https://huggingface.co/datasets/org/chat"], 2, r"is no model's page"),
        (["https://huggingface.co/org"], 2, r"names no repository"),
        (["hf:../.."], 2, r"is no repository|is no repository's name"),
        (["demo"], 2, r"built in"),
        (["smollm2"], 2, r"built in"),
        (["org/chat:Q8_0"], 1, r"org/chat/chat-Q8_0.gguf is not fetched: .*it is cut or wrong"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(pulled, tmp_path, arguments, code, sentence):
    done = pulled("pull", *arguments)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last.startswith("onecard: ")) == (code, True), done.stderr
    assert re.search(sentence, last), last
    assert "\x1b" not in done.stderr
    assert list(tmp_path.rglob("*.gguf")) == []


def test_without_a_network_it_says_so(onecard):
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        offline = onecard("pull", "org/chat", env={name: "1"})
        assert (offline.returncode, f"{name} is set" in offline.stderr) == (4, True)
    absent = onecard("pull", "org/chat", env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (absent.returncode, "127.0.0.1:9 does not answer" in absent.stderr) == (4, True)
    assert "what has come is kept" in absent.stderr
    absent = onecard("search", "chat", env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert (absent.returncode, absent.stderr.endswith("hint: check the network or HF_ENDPOINT\n")) == (4, True)


def test_what_does_not_fit_is_told_before_and_does_not_come(pulled, tmp_path):
    done = pulled("pull", "org/folder", env={"ONECARD_MEMORY__BUDGET": "8MiB"})
    assert "warning: " in done.stderr
    nothing = pulled("pull", "org/chat", env={"ONECARD_MEMORY__BUDGET": "8MiB"})
    assert nothing.returncode == 3, nothing.stderr
    assert "no quantisation of org/chat fits" in nothing.stderr
    assert cached(tmp_path) == {}


def test_a_connection_that_breaks_goes_on_where_it_was(pulled, world, tmp_path):
    world.drop_after = HALF
    done = pulled("pull", "org/chat:F16")
    assert done.returncode == 0, done.stderr
    starts = [int(asked[6:-1]) for name, asked in world.asked if asked and asked.endswith("-")]
    assert len(starts) == 1
    assert 0 < starts[0] <= HALF
    assert cached(tmp_path) == {"chat-F16.gguf": CHAT}


@pytest.mark.parametrize("ranges", [True, False])
def test_killed_anywhere_it_goes_on_and_is_whole(start, pulled, world, tmp_path, full_counts, ranges):
    world.ranges = ranges
    points = random.Random(20 + ranges)
    for at in [points.randrange(len(CHAT)) for _ in range(30 if full_counts else 2)]:
        world.stop_after = at
        world.stopped.clear()
        world.go.clear()
        process = start("pull", "org/chat:F16")
        while not world.stopped.wait(0.05) and process.poll() is None:
            pass
        process.kill()
        process.communicate()
        world.go.set()
        assert all(content == CHAT for content in cached(tmp_path).values())
    world.stop_after = None
    done = pulled("pull", "org/chat:F16")
    assert done.returncode == 0, done.stderr
    assert cached(tmp_path) == {"chat-F16.gguf": CHAT}
    assert list(tmp_path.rglob("*.incomplete")) == []


def test_what_comes_damaged_is_dropped(pulled, world, tmp_path):
    world.spoil.add("chat-F16.gguf")
    done = pulled("pull", "org/chat:F16")
    assert (done.returncode, "came with another checksum" in done.stderr) == (1, True)
    assert cached(tmp_path) == {}
    world.spoil.clear()
    world.spoil.add("generation_config.json")
    assert "generation_config.json came with another checksum" in pulled("pull", "org/folder").stderr
    assert "is not in the cache" in pulled("fit", "org/folder").stderr


def test_a_search_shows_what_there_is(pulled):
    table = pulled("search", "chat").stdout.splitlines()
    assert table[0].split() == ["MODEL", "DOWNLOADS", "SIZES"]
    assert table[1].startswith("org/chat")
    assert "F16 3.5 MiB, Q8_0 1.7 MiB" in table[1]
    found = json.loads(pulled("search", "chat", "--json").stdout)
    assert {one["name"] for one in found} == set(WORLD)
    assert "\x1b" not in "".join(table)


def test_a_server_fetches_what_is_missing_only_when_told_to_and_serves_a_folder(world, environment, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own.gguf").write_bytes(CHAT)
    (tmp_path / "c.toml").write_text('[models.chat]\npath = "hf:org/chat:F16"\n[models.gone]\npath = "hf:org/gone"\n')
    env = {**environment, "HF_ENDPOINT": world.url, "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""}
    flags = ("--config", str(tmp_path / "c.toml"), "--models-dir", str(tmp_path / "mine"))
    with serving(tmp_path, models={}, flags=flags, env=env) as server:
        assert {item["id"] for item in server.get("/v1/models")["data"]} == {"chat", "gone", "own"}
    assert world.asked == []
    with serving(tmp_path, models={}, flags=(*flags, "--pull"), env=env) as server:
        assert {item["id"] for item in server.get("/v1/models")["data"]} == {"chat", "gone", "own"}
        assert cached(tmp_path) == {"chat-F16.gguf": CHAT}
        assert "model 'gone' is not fetched: " in server.log.read_text()
