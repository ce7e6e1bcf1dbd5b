"""Which files a run imports at all, and which it begins with: importing both engines' libraries takes half a minute."""

from __future__ import annotations

import re

WITHOUT_ENGINE, WITH_ENGINE = "not engine and not gpu", "engine and not gpu"
"""What `make test` runs, one behind the other."""
LONGEST = (
    "tests/cli/test_serve.py",
    "tests/cli/test_serve_ends.py",
    "tests/cli/test_outputs.py",
    "tests/cli/test_card.py",
    "tests/cli/test_reload.py",
    "tests/http/test_endings.py",
    "tests/http/test_door.py",
    "tests/cli/test_config.py",
    "tests/cli/test_run.py",
    "tests/hub/test_pull.py",
    "tests/many/test_many.py",
    "tests/e2e/test_faults.py",
    "tests/e2e/test_conversations.py",
    "tests/bnb/test_shortage.py",
    "tests/e2e/test_answers.py",
    "tests/bnb/test_engine.py",
    "tests/embeddings/test_http.py",
    "tests/quantize/test_scores.py",
    "tests/constraints/test_demo.py",
    "tests/gguf/test_fragments.py",
    "tests/gguf/test_checkpoints.py",
    "tests/bnb/test_architectures.py",
    "tests/e2e/test_cut_calls.py",
    "tests/e2e/test_sdk.py",
    "tests/gguf/test_scoring.py",
    "tests/embeddings/test_vectors.py",
    "tests/estimates/test_folder_memory.py",
    "tests/e2e/test_mutants.py",
)
"""Files that take longest, the longest first: begun last, they would keep one worker busy while the others idle."""
_WHOLE = re.compile(r"^pytestmark = pytest\.mark\.engine$", re.MULTILINE)


def holds_none(source: str, marks: str) -> bool:
    """Whether this `-m` selects no test of a file with this text; only for the two that `make test` uses."""
    if marks == WITHOUT_ENGINE:
        return _WHOLE.search(source) is not None
    return marks == WITH_ENGINE and "mark.engine" not in source


def place(file: str) -> int:
    """Files with a lower one are begun before others."""
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)
