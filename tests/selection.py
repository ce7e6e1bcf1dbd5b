"""Which files a run imports at all, and which it begins with: importing both engines' libraries takes half a minute."""

from __future__ import annotations

import re

WITHOUT_ENGINE, WITH_ENGINE = "not engine and not gpu", "engine and not gpu"
"""What `make test` runs, one behind the other."""
LONGEST = (
    "tests/cli/test_serve.py",
    "tests/embeddings/test_http.py",
    "tests/e2e/test_faults.py",
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
