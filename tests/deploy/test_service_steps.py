"""The service for all users as docs/deployment.md installs, upgrades and removes it, in a folder in place of `/`.

What only a running systemd can do is left out: `daemon-reload`, `restart`, and `--now`. The unit's command is started,
reloaded and stopped here as the unit says. In place of a new environment stands the one that runs the tests.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from tests.deploy.dockerfile import ROOT
from tests.e2e.server import _url, until
from tests.present import present

pytestmark = pytest.mark.skipif(shutil.which("systemctl") is None, reason="no systemd here")
INSTALL = "sudo python3 deploy/install.py serve --into /opt/onecard"
UNIT = ROOT / "deploy/onecard.service"
PLACES = ("/opt/onecard", "/etc/onecard", "/etc/systemd/system", "/var/lib/private/onecard")
NEED_SYSTEMD = ("daemon-reload", "restart")


def steps() -> list[list[str]]:
    """The lines of the section's three blocks."""
    text = (ROOT / "docs/deployment.md").read_text()
    section = text.partition("## As a service for all users")[2].partition("\n## ")[0]
    return [block.strip().splitlines() for block in re.findall(r"```sh\n(.*?)```", section, re.DOTALL)]


def run(line: str, root: Path) -> None:
    """One line, with the folder in place of `/` and without a change of the user."""
    if line == INSTALL:
        (root / "opt/onecard/bin").mkdir(parents=True, exist_ok=True)
        program = root / "opt/onecard/bin/onecard"
        program.unlink(missing_ok=True)
        program.symlink_to(Path(sys.executable).with_name("onecard"))
        return
    assert line.startswith("sudo "), line
    inside = line.removeprefix("sudo ")
    for place in PLACES:
        inside = inside.replace(place, f"{root}{place}")
    words = shlex.split(inside)
    if words[0] == "systemctl":
        if words[1] in NEED_SYSTEMD:
            return
        inside = shlex.join(["systemctl", f"--root={root}", *(word for word in words[1:] if word != "--now")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ONECARD_")}
    done = subprocess.run(["sh", "-c", inside], cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def enabled(root: Path) -> str:
    command = ["systemctl", f"--root={root}", "is-enabled", "onecard"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def served(root: Path, folder: Path) -> None:
    """Start what the unit starts, in its environment; reload and stop it as the unit does."""
    unit = (root / "etc/systemd/system/onecard.service").read_text()
    command = present(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE))[1]
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit
    keys, home = root / "etc/onecard", root / "var/lib/private/onecard"
    home.mkdir(parents=True, exist_ok=True)
    given = dict(re.findall(r"^Environment=(\w+)=(.*)$", unit, re.MULTILINE))
    given = {
        name: value.replace("%d", str(keys)).replace("/var/lib/onecard", str(home)) for name, value in given.items()
    }
    for place in PLACES:
        command = command.replace(place, f"{root}{place}")
    log = folder / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*shlex.split(command), "--port", "0"],
            env={"PATH": os.environ["PATH"], **given},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        url = _url(process, log)
        key = (keys / "keys").read_text().strip()
        asked = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(asked, timeout=20) as answer:
            assert answer.status == 200
        process.send_signal(signal.SIGHUP)
        until(lambda: "config_reloaded by=SIGHUP" in log.read_text(), 20)
    finally:
        process.terminate()
        assert process.wait(40) == 0
        present(process.stdout).close()


def test_it_is_installed_upgraded_and_removed_by_the_documents_own_lines(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for place in ("/opt", "/etc/systemd/system", "/var/lib/private"):
        (root / place.strip("/")).mkdir(parents=True)
    before = sorted(root.rglob("*"))
    install, upgrade, remove = steps()
    assert install[0] == upgrade[0] == INSTALL

    for line in install:
        run(line, root)
    assert enabled(root) == "enabled"
    assert stat.S_IMODE((root / "etc/onecard/keys").stat().st_mode) == 0o600
    served(root, tmp_path)

    kept = [(root / "etc/onecard" / name).read_bytes() for name in ("config.toml", "keys")]
    for line in upgrade:
        run(line, root)
    assert [(root / "etc/onecard" / name).read_bytes() for name in ("config.toml", "keys")] == kept
    assert (root / "etc/systemd/system/onecard.service").read_bytes() == UNIT.read_bytes()
    assert enabled(root) == "enabled"
    served(root, tmp_path)

    for line in remove:
        run(line, root)
    left = [path for path in sorted(root.rglob("*")) if path not in before and not path.is_dir()]
    assert left == []
