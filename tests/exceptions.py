"""What only one backend has: each test that asks a real model and yet runs on one backend, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

EXCEPTIONS: Mapping[str, Mapping[str, str]] = {
    "tests/embeddings/test_http.py::test_a_reranker_that_tells_its_two_texts_apart_is_served": {
        "gguf": "llama.cpp gives both texts of a pair the same token type, so such a file is refused",
    },
}
"""The backends that a test leaves out, by its id without parameters."""


def reason_of(test: str, backend: str) -> str | None:
    """Why this test, `path::name[parameters]`, does not run on that backend; None where it does."""
    return EXCEPTIONS.get(test.partition("[")[0], {}).get(backend)
