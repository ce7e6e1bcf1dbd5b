"""`/docs` works without a network, runs no script but its own files, and asks for the same keys as what it shows."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess

import pytest

from tests.http.conftest import KEY
from tests.present import present

FILES = ("docs/swagger-ui.css", "docs/swagger-ui-bundle.js", "docs/start.js")
PATHS = ("/docs", "/openapi.json", *(f"/{file}" for file in FILES))
CHROMIUM = shutil.which("chromium")


def dialog(key: str) -> dict[str, str]:
    """What a browser sends once its dialog was told a name and a password."""
    return {"authorization": "Basic " + base64.b64encode(f"me:{key}".encode()).decode()}


def test_the_page_holds_no_script_and_every_file_it_names_is_served(server):
    page = server.get("/docs")
    html = page.body.decode()

    assert re.findall(r"""(?:src|href)="([^"]+)""", html) == ["data:,", *FILES]
    assert re.findall(r"<script[^>]*>([^<]*)</script>", html) == ["", ""]
    assert not re.search(r"\s(?:style|on\w+)=", html)
    for path in ("/docs", *(f"/{file}" for file in FILES)):
        answer = server.get(path)
        policy = answer.headers["content-security-policy"]
        assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
        assert {"default-src 'none'", "script-src 'self'", "connect-src 'self'"} <= set(policy.split("; "))
        assert "unsafe" not in policy
    assert b"http" not in server.get("/docs/start.js").body


@pytest.mark.parametrize("path", PATHS)
def test_it_needs_a_key_which_a_browser_can_ask_for(keyed, path):
    refused = keyed.get(path)
    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    for headers in (dialog(KEY), {"x-api-key": KEY}, {"authorization": f"Bearer {KEY}"}):
        assert keyed.get(path, headers=headers).status == 200
    for headers in (dialog("wrong"), dialog(""), {"authorization": "Basic !"}, {"authorization": f"Basic {KEY}"}):
        assert keyed.get(path, headers=headers).status == 401
    assert keyed.get(path, headers={"host": "evil.example", "x-api-key": KEY}).status == 403


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/docs"), ("GET", "/docsx")]
)
def test_what_the_dialog_was_told_is_no_key_anywhere_else(keyed, method, path):
    """A browser sends it with requests that other sites make it send."""
    answer = keyed.call(method, path, {}, headers=dialog(KEY))
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")
def test_a_browser_shows_every_operation(keyed, tmp_path):
    document = keyed.get("/openapi.json", headers={"x-api-key": KEY}).json()
    url = f"http://me:{KEY}@127.0.0.1:{keyed.port}/docs"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--enable-logging=stderr"]
    shown = subprocess.run(
        [present(CHROMIUM), *options, "--virtual-time-budget=20000", "--dump-dom", url],
        capture_output=True,
        text=True,
        timeout=90,
    )

    assert shown.stdout.count('class="opblock-summary-path"') == sum(map(len, document["paths"].values()))
    assert "Authorize" in shown.stdout
    assert "CONSOLE" not in shown.stderr, shown.stderr
