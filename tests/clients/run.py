"""`make clients`: a turn, a stream, a tool loop, a schema and an image with every client, against `onecard serve`.

On both backends. And schemathesis, which sends what the server's description forbids, and llm-comply, which asks a
model that sees in three formats.

The clients live in `.venv-clients` and `build/clients-node`, apart from everything else. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ENVIRONMENT = ROOT / ".venv-clients"
NODE = ROOT / "build" / "clients-node"
STEPS = ("turn", "stream", "tools", "schema", "image")
SHOW_NOTHING = ("llm", "openai-node", "ollama-js")
"""Clients that are not asked to show an image."""
FORMATS = ("open-responses", "openai-chat", "anthropic")
CLIENTS = {
    "openai-python chat": "openai_chat.py",
    "openai-python responses": "openai_responses.py",
    "anthropic-python": "anthropic_messages.py",
    "langchain-openai": "langchain_chat.py",
    "llm": "llm_chat.py",
    "ollama-python": "ollama_chat.py",
}
OF_NODE = {"openai-node": "openai.mjs", "ollama-js": "ollama.mjs"}
MODELS = {"gguf": "demo", "bnb": ROOT / "demo" / "model" / "hf"}
"""The demo model by the backend that computes it."""
SEERS = {"gguf": ("gguf-sees", "demo-vision"), "bnb": ("bnb-sees", ENVIRONMENT / "demo-vision")}
LIMIT_S = 120


def main() -> int:
    """0 where every client that could be installed did every step."""
    python = installed_python()
    node = installed_node()
    failed = 0
    commands = {name: [str(python), str(HERE / script)] for name, script in CLIENTS.items()}
    if node is not None:
        commands |= {name: [node, str(NODE / script)] for name, script in OF_NODE.items()}
    with serving() as url:
        for backend in MODELS:
            for name, command in commands.items():
                failed += not report(f"{name}, {backend}", command, url, backend)
            failed += sum(not complies(python, url, backend, form) for form in FORMATS)
        failed += not fuzz(python, url)
    if node is None:
        print(f"{', '.join(OF_NODE):32} skipped: node and npm are not installed")
    return 1 if failed else 0


def installed_python() -> Path:
    """The clients' own interpreter; installs where the list of clients changed."""
    python = ENVIRONMENT / "bin" / "python"
    wanted = HERE / "requirements.txt"
    if stale(ENVIRONMENT, wanted):
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        install([str(python), "-m", "pip", "install", "-q", "-r", str(wanted)], HERE)
        stamp(ENVIRONMENT, wanted)
    return python


def installed_node() -> str | None:
    """node, with its clients installed; None where there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    NODE.mkdir(parents=True, exist_ok=True)
    wanted = HERE / "node" / "package.json"
    for script in OF_NODE.values():
        shutil.copy(HERE / "node" / script, NODE)
    if stale(NODE, wanted):
        shutil.copy(wanted, NODE)
        install([npm, "install", "--no-audit", "--no-fund", "--loglevel=error"], NODE)
        stamp(NODE, wanted)
    return node


def install(command: list[str], folder: Path) -> None:
    """Run an installer; what it says matters only where it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} failed:\n{done.stdout}{done.stderr}")


def stale(folder: Path, wanted: Path) -> bool:
    """Whether what is installed is not what is wanted."""
    mark = folder / "installed"
    return not mark.exists() or mark.read_text() != _digest(wanted)


def stamp(folder: Path, wanted: Path) -> None:
    (folder / "installed").write_text(_digest(wanted))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """The address of a server of the demo model, under the name of each backend that reads it."""
    command = [str(ROOT / ".venv" / "bin" / "python"), "-m", "server.cli", "serve", "--port", "0"]
    install([command[0], "-m", "demo.vision.folder", str(SEERS["bnb"][1])], ROOT)
    served = [*MODELS.items(), *SEERS.values()]
    log = ENVIRONMENT / "serve.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*command, *(part for name, path in served for part in ("--model", f"{name}={path}"))],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=ROOT,
        )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r"http://[\w.:]+", line):
                yield found.group()
                return
        sys.exit(f"the server did not come up:\n{log.read_text()}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(40)


def complies(python: Path, url: str, backend: str, form: str) -> bool:
    """llm-comply in one format, whose tests of images have to be among those that pass."""
    command = [str(python.with_name("llm-comply")), "run", "--base-url", f"{url}/v1", "--api-key", "none"]
    command += ["--model", SEERS[backend][0], "--format", form]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ENVIRONMENT)
    found = re.findall(r"Results: (.*)", done.stdout)
    good = done.returncode == 0 and re.search(r"\u2705 Image Input", done.stdout) is not None
    print(f"{f'llm-comply {form}, {backend}':32} {found[0] if found and good else 'FAILED'}", flush=True)
    if not good:
        print(done.stdout[-3000:], done.stderr[-1000:])
    return good


def fuzz(python: Path, url: str) -> bool:
    """schemathesis over the server's own description: wrong bodies, and no answer is the server's fault."""
    command = [str(python.with_name("schemathesis")), "run", f"{url}/openapi.json", "--mode", "negative"]
    command += ["--checks", "not_a_server_error", "--phases", "fuzzing", "--max-examples", "15"]
    command += ["--request-timeout", "10", "--exclude-path", "/v1/events", "--generation-database", "none"]
    command += ["--suppress-health-check", "all"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ENVIRONMENT)
    found = re.findall(r"\d+ generated, \d+ passed.*", done.stdout)
    print(f"{'schemathesis':32} {found[0] if found else 'FAILED'}", flush=True)
    if done.returncode:
        print(done.stdout[-3000:], done.stderr[-1000:])
    return done.returncode == 0


def report(name: str, command: list[str], url: str, model: str) -> bool:
    """Run one client and print which steps it did."""
    env = {
        **os.environ,
        "ONECARD_URL": url,
        "ONECARD_MODEL": model,
        "ONECARD_SEER": SEERS[model][0],
        "OPENAI_API_KEY": "none",
        "ANTHROPIC_API_KEY": "none",
    }
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        said, problem = done.stdout, done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired:
        said, problem = "", f"took longer than {LIMIT_S} s"
    steps = [step for step in STEPS if f"ok {step}" in said.splitlines()]
    blind = name.startswith(SHOW_NOTHING)
    missing = [step for step in STEPS if step not in steps and not (blind and step == "image")]
    print(f"{name:32} {' '.join(steps)}" + (f"   FAILED: {' '.join(missing)}" if missing else ""), flush=True)
    if missing or problem:
        print((problem or said).strip()[-2000:])
    return not missing and not problem


if __name__ == "__main__":
    sys.exit(main())
