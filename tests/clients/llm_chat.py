"""Simon Willison's llm, with the model as its users add it: in extra-openai-models.yaml."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from questions import FRANCE, MODEL, PARIS, SCHEMA, WEATHER, check, done

ENTRY = """\
- model_id: card
  model_name: {model}
  api_base: "{url}/v1"
  api_key_name: onecard
  supports_tools: true
  supports_schema: true
"""
FUNCTION = '''
def get_weather(city: str) -> str:
    """Get the weather of a city"""
    return '{"condition": "sunny", "temperature": 21}'
'''

with tempfile.TemporaryDirectory() as folder:
    home = Path(folder)
    (home / "extra-openai-models.yaml").write_text(ENTRY.format(url=os.environ["ONECARD_URL"], model=MODEL))
    (home / "keys.json").write_text('{"onecard": "none"}')

    def ask(*arguments: str) -> str:
        command = [sys.executable, "-m", "llm", "-m", "card", "-o", "temperature", "0", *arguments]
        done = subprocess.run(
            command, env={**os.environ, "LLM_USER_PATH": str(home)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert ask("--no-stream", FRANCE) == PARIS
    done("turn")
    assert ask(FRANCE) == PARIS
    done("stream")
    assert "sunny" in ask("--functions", FUNCTION, WEATHER)
    done("tools")
    check(json.loads(ask("--schema", json.dumps(SCHEMA), "-o", "max_tokens", "200", FRANCE)))
    done("schema")
