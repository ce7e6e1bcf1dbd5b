"""`onecard config`, and what every command says when the configuration is wrong."""

import json

import pytest

from server.settings.builtin import SERVED
from tests.cli.conftest import INSTALLED


@pytest.mark.skipif([*SERVED] != INSTALLED, reason="the example names smollm2, which the index did not give")
def test_init_writes_what_check_accepts(onecard, tmp_path):
    written = onecard("config", "init")
    file = tmp_path / "config" / "onecard" / "config.toml"
    assert written.returncode == 0
    assert file.is_file()
    assert written.stderr == f"wrote {file}. `onecard serve` reads it\n"
    assert onecard("config", "init").returncode == 1
    assert onecard("config", "init", "--force").returncode == 0
    checked = onecard("config", "check")
    assert (checked.returncode, checked.stdout) == (0, f"ok: {file}, models: smollm2, demo\n")


def test_check_in_json(onecard):
    assert json.loads(onecard("config", "check", "--json").stdout) == {
        "file": None,
        "models": INSTALLED,
        "warnings": [],
        "errors": [],
    }


def test_schema_is_json_schema_of_every_section(onecard):
    schema = json.loads(onecard("config", "schema").stdout)
    assert set(schema["properties"]) == {
        *("server", "keys", "memory", "scheduler", "defaults", "models", "metrics", "logging", "traces", "training")
    }
    assert "name" not in schema["$defs"]["ModelConfig"]["properties"]


def test_show_tells_where_values_come_from_and_hides_keys(onecard, tmp_path):
    (tmp_path / "c.toml").write_text("[server]\nport = 99\n[models.'a b']\npath = 'demo'")
    env = {"ONECARD_SERVER__API_KEYS": "sesame", "ONECARD_SERVER__MAX_QUEUE": "7"}
    shown = onecard("config", "show", "-c", "c.toml", env=env)
    for line in (
        "port = 99  # file",
        'api_keys = ["(hidden)"]  # environment',
        "max_queue = 7  # environment",
        '[models."a b"]',
    ):
        assert line in shown.stdout
    values = json.loads(onecard("config", "show", "-c", "c.toml", "--json", env=env).stdout)
    assert values["server"]["api_keys"] == ["(hidden)"]
    assert "sesame" not in shown.stdout + shown.stderr


@pytest.mark.parametrize(
    "command", [["serve"], ["ps"], ["list"], ["run", "demo", "hi"], ["config", "check"], ["config", "show"]]
)
def test_a_wrong_configuration_is_a_sentence_and_exit_code_2(onecard, tmp_path, command):
    (tmp_path / "c.toml").write_text("[server]\nprot = 99")
    done = onecard(*command, "--config", "c.toml")
    assert done.returncode == 2
    assert done.stderr == "onecard: c.toml: server.prot is an unknown key. hint: did you mean 'port'?\n"
    assert done.stdout == ""


def test_a_missing_model_file_is_a_sentence_and_exit_code_2(onecard, tmp_path):
    done = onecard("serve", "--port", "0", "--model", "a=none.gguf")
    assert done.returncode == 2
    assert done.stderr == f"onecard: model 'a': there is no file or folder {tmp_path}/none.gguf\n"


def test_check_reads_the_models_headers_and_names_all_that_are_broken(onecard, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + bytes(60))
    (tmp_path / "c.toml").write_text(
        "[models.a]\npath = 'demo'\n[models.b]\npath = 'broken.gguf'\n[models.c]\npath = 'none.gguf'"
    )
    done = onecard("config", "check", "--config", "c.toml")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("onecard: model 'b': ")
    assert second == f"onecard: model 'c': there is no file or folder {tmp_path}/none.gguf"
    done = onecard("config", "check", "--config", "c.toml", "--json")
    assert done.returncode == 2
    assert [f"onecard: {error}" for error in json.loads(done.stdout)["errors"]] == [first, second]
    (tmp_path / "c.toml").write_text("[server]\nprot = 99\n[memory]\nbugdet = 1")
    done = onecard("config", "check", "--config", "c.toml", "--json")
    assert [f"onecard: {error}" for error in json.loads(done.stdout)["errors"]] == done.stderr.splitlines()
    assert len(done.stderr.splitlines()) == 2


def test_a_wrong_variable_is_exit_code_2(onecard):
    done = onecard("config", "check", env={"ONECARD_PORT": "1"})
    assert done.returncode == 2
    assert done.stderr == "onecard: environment: ONECARD_PORT is no setting. hint: did you mean ONECARD_SERVER__PORT?\n"


def test_an_unknown_flag_is_exit_code_2(onecard):
    assert onecard("serve", "--nonsense").returncode == 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--budget", "12 parsecs"], "flag --budget = '12 parsecs'"),
        (["--host-budget", "much"], "flag --host-budget = 'much'"),
        (["--device", "tpu"], "flag --device = 'tpu'"),
        (["--model", "=x"], "write NAME=PATH"),
        (["--model", "a=x", "--model", "a=y"], "names 'a' twice"),
        (["--api-key", "two words"], "flag --api-key: a key is"),
        (["--api-key-file", "none"], "does not exist"),
    ],
)
def test_a_wrong_flag_is_named(onecard, flags, sentence):
    done = onecard("serve", *flags)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "words" not in done.stderr


def test_version_and_help(onecard):
    assert onecard("--version").stdout.startswith("onecard 0.")
    assert "serve" in onecard("--help").stdout
    for command in ("serve", "run", "ps", "list", "config"):
        assert onecard(command, "--help").returncode == 0
