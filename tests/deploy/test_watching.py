"""The board, the alerts and the scaling ask only for what a server's own `/metrics` has; promtool tries the alerts."""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.dockerfile import ROOT, stages
from tests.deploy.test_compose import COMPOSE, SERVICE
from tests.http.conftest import server

__all__ = ["server"]

DEPLOY = ROOT / "deploy"
BOARD = json.loads((DEPLOY / "grafana/onecard.json").read_text())
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
CLUSTER: list[dict[str, Any]] = [
    document
    for file in ("onecard.yaml", "scaling.yaml", "kuberay.yaml")
    for document in yaml.safe_load_all((DEPLOY / "kubernetes" / file).read_text())
]
SCALER = next(document for document in CLUSTER if document["kind"] == "ScaledObject")["spec"]
CRDS: dict[str, Any] = json.loads((ROOT / "tests/deploy/crds.json").read_text())
"""Schemas of kedacore/keda at 8b4f083, prometheus-operator at 6adcebc and ray-project/kuberay at feeaf72, strict,
without their words and `status`; of KubeRay without pod templates and what the manifest does not use."""
_ASKED = re.compile(r"\b(onecard_\w+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)(=~?)"([^"]*)"')


def expressions() -> Iterator[tuple[str, str]]:
    for panel in BOARD["panels"]:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield "a variable", BOARD["templating"]["list"][0]["query"]
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)
    yield from (("a trigger", trigger["metadata"]["query"]) for trigger in SCALER["triggers"])


@pytest.fixture(scope="module")
def recorded(server) -> dict[str, list[dict[str, str]]]:
    """Every series of a server, by the name of its samples."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(server.get("/metrics").body.decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


def test_everything_that_is_asked_for_is_there(recorded):
    n_asked = 0
    for where, expression in expressions():
        for name, labels in _ASKED.findall(expression):
            n_asked += 1
            assert name in recorded, (where, name)
            for label, sign, value in _LABEL.findall(labels):
                if value.startswith("$"):
                    continue
                wanted = value.split("|") if sign == "=~" else [value]
                held = {series.get(label) for series in recorded[name]}
                assert set(wanted) <= held, (where, name, label, held)
        for label in re.findall(r"by \(([\w, ]+)\)", expression):
            held = {key for name, _ in _ASKED.findall(expression) for series in recorded[name] for key in series}
            assert set(label.replace(" ", "").split(",")) <= held, (where, label)
    assert n_asked > 30


def test_every_panel_says_what_it_shows_and_stands_alone():
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    cells = [(x, place["y"]) for place in places for x in range(place["x"], place["x"] + place["w"])]
    assert len(set(cells)) == len(cells)
    assert all(panel["description"] for panel in BOARD["panels"])
    assert all(rule["annotations"].keys() == {"summary", "hint"} for rule in RULES)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here: apt install prometheus")
def test_each_alert_fires_for_what_it_is_made_for_and_for_nothing_else():
    for command in (["check", "rules", "alerts.yml"], ["test", "rules", "alerts.test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=DEPLOY, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_compose_gives_grafana_its_board_and_keeps_what_was_learned():
    grafana, prometheus = COMPOSE["services"]["grafana"], COMPOSE["services"]["prometheus"]
    for service in (grafana, prometheus, SERVICE):
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            committed = source.startswith("./") and not source.endswith("data")
            assert not committed or (DEPLOY / source).is_file(), source
    uid = yaml.safe_load((DEPLOY / "grafana/datasource.yml").read_text())["datasources"][0]["uid"]
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"]} == {uid}
    folder = yaml.safe_load((DEPLOY / "grafana/boards.yml").read_text())["providers"][0]["options"]["path"]
    assert any(f":{folder}/onecard.json:" in volume for volume in grafana["volumes"])
    assert f"./data:{SERVICE['environment']['XDG_DATA_HOME']}" in SERVICE["volumes"]


def faults(document: dict[str, Any]) -> list[str]:
    """What the schema of its operator says against it."""
    found = Draft202012Validator(CRDS[document["kind"]]).iter_errors(document)
    return [f"{'.'.join(map(str, fault.absolute_path))}: {fault.message[:200]}" for fault in found]


def test_what_the_operators_read_is_of_their_schemas():
    for document in CLUSTER:
        if document["kind"] in CRDS:
            assert faults(document) == []
    assert {document["kind"] for document in CLUSTER} >= set(CRDS)
    wrong = copy.deepcopy(next(document for document in CLUSTER if document["kind"] == "ScaledObject"))
    wrong["spec"]["minReplicas"] = wrong["spec"].pop("minReplicaCount")
    wrong["spec"]["cooldownPeriod"] = "long"
    assert [fault.split(":")[0] for fault in faults(wrong)] == ["spec.cooldownPeriod", "spec"]


def test_ray_starts_the_application_with_what_it_takes():
    spec = next(document for document in CLUSTER if document["kind"] == "RayService")["spec"]
    (application,) = yaml.safe_load(spec["serveConfigV2"])["applications"]
    module, _, name = application["import_path"].partition(":")
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text())
    build = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    taken = {node.value for node in ast.walk(build) if isinstance(node, ast.Constant)}
    assert set(application["args"]) <= taken
    group = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    assert (application["args"]["nodes"], application["args"]["most"]) == (group["minReplicas"], group["maxReplicas"])


def test_the_cluster_runs_the_image_as_it_is_made():
    kinds = {document["kind"]: document for document in CLUSTER}
    pod = kinds["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    image = stages("cpu")["image"]
    assert f"{pod['spec']['securityContext']['runAsUser']}:" in image.values("USER")[-1]
    assert str(container["ports"][0]["containerPort"]) == image.values("EXPOSE")[-1]
    assert {probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")} == {"/health"}
    labels = pod["metadata"]["labels"]
    assert kinds["Service"]["spec"]["selector"] == kinds["PodMonitor"]["spec"]["selector"]["matchLabels"] == labels
    assert kinds["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] == container["ports"][0]["name"]
    assert SCALER["scaleTargetRef"]["name"] == kinds["Deployment"]["metadata"]["name"]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["spec"]["volumes"]}
    keys = {entry["name"]: entry["value"] for entry in container["env"]}
    assert keys["ONECARD_SERVER__API_KEY_FILE"].startswith("/run/secrets/onecard/")
