"""compose.yaml, prometheus.yml and the systemd unit agree with the image and with the command line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml

from server.memory.opening import MOST_AUTO_PREFIX_CACHE
from server.settings.config import Settings
from tests.deploy.dockerfile import ROOT, stages
from tests.present import present

COMPOSE = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
SERVICE = COMPOSE["services"]["onecard"]
SCRAPE = yaml.safe_load((ROOT / "deploy/prometheus.yml").read_text())["scrape_configs"][0]
UNIT = (ROOT / "deploy/onecard.service").read_text()
IMAGE = stages("cpu")["image"]


def test_compose_builds_this_dockerfile_in_a_variant_it_has():
    assert (ROOT / "deploy" / SERVICE["build"]["context"] / "Dockerfile").samefile(ROOT / "Dockerfile")
    cuda = yaml.safe_load((ROOT / "deploy/compose.cuda.yaml").read_text())["services"]["onecard"]
    for build in (SERVICE["build"], cuda["build"]):
        assert f"run-base-{build['args']['VARIANT']}" in stages(build["args"]["VARIANT"])


def test_ports_are_published_on_this_machine_only():
    for service in COMPOSE["services"].values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
    assert SERVICE["ports"][0].endswith(f":{IMAGE.values('EXPOSE')[-1]}")


def test_the_configuration_is_mounted_where_the_image_looks_for_it():
    targets = [re.sub(r"^.*:(/[^:]+)(:ro)?$", r"\1", volume) for volume in SERVICE["volumes"]]
    assert f"{IMAGE.environment()['XDG_CONFIG_HOME']}/onecard/config.toml" in targets
    assert IMAGE.values("VOLUME")[-1] in targets


def test_environment_variables_are_settings():
    for name in (name for name in [*SERVICE["environment"], *IMAGE.environment()] if name.startswith("ONECARD_")):
        section, key = name.removeprefix("ONECARD_").lower().split("__")
        kept: Any = Settings.model_fields[section].annotation
        assert key in kept.model_fields, name


def test_prometheus_scrapes_the_service_with_the_same_key():
    assert SCRAPE["static_configs"][0]["targets"] == [f"onecard:{IMAGE.values('EXPOSE')[-1]}"]
    assert SCRAPE["authorization"]["credentials_file"] == SERVICE["environment"]["ONECARD_SERVER__API_KEY_FILE"]
    assert COMPOSE["services"]["prometheus"]["secrets"] == SERVICE["secrets"] == list(COMPOSE["secrets"])
    assert "./prometheus.yml:/etc/prometheus/prometheus.yml:ro" in COMPOSE["services"]["prometheus"]["volumes"]


def test_there_is_time_to_drain_before_the_kill():
    drain_s = Settings().server.drain_s
    assert int(SERVICE["stop_grace_period"].removesuffix("s")) >= drain_s + 5
    assert int(present(re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE))[1]) >= drain_s + 5


def test_cached_prefixes_have_room_in_shared_memory():
    assert int(SERVICE["shm_size"].removesuffix("gb")) << 30 >= MOST_AUTO_PREFIX_CACHE


def test_secrets_and_data_are_never_committed():
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/deploy/secrets/", "/deploy/prometheus-data/", "/models/"} <= set(ignored)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_accepts_the_unit(tmp_path):
    unit = tmp_path / "onecard.service"
    unit.write_text(UNIT.replace("/opt/onecard/bin/onecard", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_starts_a_command_that_exists():
    command = present(re.search(r"^ExecStart=/opt/onecard/bin/onecard (\w+) (--\w+)", UNIT, re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", command[1], "--help"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert command[2] in done.stdout
