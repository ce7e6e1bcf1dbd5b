"""`onecard service` and `onecard logs`, against executables on PATH that write down how they were called."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from server.cli.console import CliError
from server.cli.service import unit
from server.cli.service.command import install, uninstall
from tests.cli.conftest import Onecard

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_ALONE = ("DynamicUser", "LoadCredential", "Protect", "PrivateTmp", "CapabilityBoundingSet", "Device", "After=")


@pytest.fixture
def called(tmp_path, monkeypatch) -> Path:
    """Commands of systemd that only write down their arguments; `refuse` makes one fail."""
    folder, record = tmp_path / "bin", tmp_path / "called"
    folder.mkdir()
    record.touch()
    for name in ("systemctl", "journalctl"):
        script = folder / name
        script.write_text(
            "#!/bin/sh\n"
            f'echo "{name} $*" >> {shlex.quote(str(record))}\n'
            f'if [ -e {shlex.quote(str(tmp_path))}/refuse ] && grep -q "^$3" {shlex.quote(str(tmp_path))}/refuse; '
            'then echo "Failed to connect to bus: No medium found" >&2; exit 1; fi\n'
        )
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", *(n for n in os.environ if n.startswith("ONECARD_"))):
        monkeypatch.delenv(name, raising=False)
    return record


def verbs(record: Path) -> list[str]:
    return [line.removeprefix("systemctl --user --no-pager ") for line in record.read_text().splitlines()]


def test_what_a_user_may_have_of_the_systems_unit_is_in_the_users(tmp_path):
    system = (ROOT / "deploy/onecard.service").read_text()
    text = unit.text(tmp_path / "c.toml", {})
    lines = [line for line in text.splitlines() if "=" in line]
    assert all(name in system and name not in text for name in SYSTEM_ALONE)
    assert {line for line in lines if line not in system.splitlines()} == {
        f"ExecStart={unit.program()[0]} serve --config {tmp_path}/c.toml",
        "WantedBy=default.target",
    }
    assert {"KillMode=mixed", "Restart=on-failure", "NoNewPrivileges=yes", "UMask=0077"} <= set(lines)


def test_a_path_below_home_is_written_out(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert f"--config {tmp_path}/c.toml\n" in unit.text(Path("~/c.toml"), {})


def test_the_card_is_let_in_by_every_name_its_drivers_have_used():
    system = (ROOT / "deploy/onecard.service").read_text()
    (group,) = re.findall(r"^DeviceAllow=char-(\S+) rw$", system, re.MULTILINE)
    from fnmatch import fnmatch

    for name in ("nvidia-frontend", "nvidia", "nvidiactl", "nvidia-uvm", "nvidia-caps", "nvidia-modeset"):
        assert fnmatch(name, group)


@pytest.mark.parametrize(
    ("word", "written"),
    [
        ("/opt/x", "/opt/x"),
        ("/a b", '"/a b"'),
        ("100%", "100%%"),
        ("$HOME", '"$$HOME"'),
        ('say "x"', '"say \\"x\\""'),
        ("back\\slash", '"back\\\\slash"'),
        ("é", '"é"'),
        (";", '";"'),
        ("", '""'),
    ],
)
def test_words_of_a_unit_mean_themselves(word, written):
    assert unit.quoted(word) == written


@pytest.mark.parametrize("word", ["a\nExecStartPre=/bin/rm", "a\rb", "a\0b"])
def test_a_word_with_a_line_end_is_refused(word):
    with pytest.raises(CliError):
        unit.quoted(word)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("config", [None, "a b", "50%", "$x"])
def test_systemd_accepts_the_users_unit(config, tmp_path):
    file = tmp_path / unit.NAME
    file.write_text(unit.text(None if config is None else tmp_path / config, {"HF_HOME": "/x y/$z%"}))
    with tempfile.TemporaryDirectory() as run:  # the names of other programs' sockets in it have to stay short
        env = {**os.environ, "XDG_RUNTIME_DIR": run}
        done = subprocess.run(
            ["systemd-analyze", "--user", "verify", str(file)], capture_output=True, text=True, check=False, env=env
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("now", [False, True])
def test_install_writes_enables_and_tells(now, called, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HOME", "/models/hf")
    monkeypatch.setenv("ONECARD_SERVER__PORT", "9000")
    install(config=None, now=now)
    text = unit.place().read_text()
    assert text.startswith(unit.MARK)
    assert "Environment=HF_HOME=/models/hf" in text
    wanted = ["daemon-reload", "enable onecard.service", *(["restart onecard.service"] if now else [])]
    assert verbs(called) == wanted
    told = capsys.readouterr()
    assert str(unit.place()) in told.out
    assert "enable-linger" in told.err
    assert "ONECARD_SERVER__PORT" in told.err, "what the service does not get is named"


def test_install_again_is_an_upgrade(called, capsys):
    install(config=None, now=False)
    new = unit.place().read_text()
    unit.place().write_text(new.replace("ExecStart=", "ExecStart=/old/bin/"))
    install(config=None, now=True)
    assert unit.place().read_text() == new
    assert verbs(called)[-1] == "restart onecard.service"


def test_uninstall_leaves_nothing(called, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    install(config=None, now=False)
    uninstall()
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and not path.is_dir()]
    assert left == []
    assert verbs(called)[2:] == ["disable --now onecard.service", "daemon-reload"]
    with pytest.raises(CliError, match="nothing to remove"):
        uninstall()


@pytest.mark.parametrize("refused", ["daemon-reload", "enable"])
@pytest.mark.parametrize("there", [False, True])
def test_where_systemd_refuses_nothing_is_left(refused, there, called, tmp_path):
    if there:
        install(config=None, now=False)
        unit.place().write_text(f"{unit.MARK}\nold\n")
    before = {path: path.read_bytes() for path in (tmp_path / "config").rglob("*") if path.is_file()}
    (tmp_path / "refuse").write_text(refused)
    with pytest.raises(CliError, match="XDG_RUNTIME_DIR") as problem:
        install(config=None, now=False)
    assert "Nothing was changed" in problem.value.message
    after = {path: path.read_bytes() for path in (tmp_path / "config").rglob("*") if path.is_file()}
    assert after == before
    assert there or not unit.place().parent.parent.exists()


def test_a_unit_of_another_hand_is_left_alone(called):
    unit.place().parent.mkdir(parents=True)
    unit.place().write_text("[Service]\nExecStart=/mine\n")
    for act in (lambda: install(config=None, now=False), uninstall):
        with pytest.raises(CliError, match="not written by"):
            act()
    assert unit.place().read_text() == "[Service]\nExecStart=/mine\n"
    assert verbs(called) == []


def test_a_server_that_would_not_start_is_not_installed(called, tmp_path):
    (tmp_path / "c.toml").write_text("[server]\nhost = '0.0.0.0'\n")
    with pytest.raises(CliError, match="no key"):
        install(config=tmp_path / "c.toml", now=False)
    assert not unit.place().exists()


def test_without_systemd_it_is_a_sentence(called, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CliError, match="systemd is not installed"):
        install(config=None, now=False)
    assert not unit.place().exists()


def test_logs_of_the_users_service(called, onecard: Onecard, tmp_path):
    env = {"PATH": os.environ["PATH"], "XDG_CONFIG_HOME": str(tmp_path / "config")}
    none = onecard("logs", env=env)
    assert (none.returncode, "service install" in none.stderr) == (2, True)
    install(config=None, now=False)
    called.write_text("")
    assert onecard("logs", "-f", "-n", "5", env=env).returncode == 0
    assert verbs(called) == ["journalctl --user --unit onecard.service --lines 5 --output cat --follow"]


def states(tmp_path: Path, state: str) -> None:
    (tmp_path / "bin/systemctl").write_text(f"#!/bin/sh\necho {state}\n")


@pytest.mark.parametrize(
    ("state", "level"), [("active", "ok"), ("inactive", "ok"), ("failed", "problem"), ("activating", "ok")]
)
def test_the_doctor_tells_its_state(state, level, called, tmp_path):
    assert [one.level for one in unit.findings()] == ["ok"]
    install(config=None, now=False)
    states(tmp_path, state)
    found = [one for one in unit.findings() if state in one.text]
    assert [one.level for one in found] == [level]
    unit.place().write_text(unit.place().read_text().replace("ExecStart=", "ExecStart=/old"))
    assert "another installation" in unit.findings()[0].text
