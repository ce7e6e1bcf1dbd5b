"""Scores as the list that rerank clients read: the best first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from server.output.frame import to_json

if TYPE_CHECKING:
    from collections.abc import Sequence


def ranking_body(
    scores: Sequence[float],
    documents: Sequence[str] | None,
    *,
    answer_id: str,
    model: str,
    n_tokens: int,
    top_n: int | None,
) -> bytes:
    """The fields of Cohere's and of Jina's answers; `documents` are given back where they were asked for."""
    best = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:top_n]
    results: list[dict[str, Any]] = [{"index": place, "relevance_score": scores[place]} for place in best]
    if documents is not None:
        for result in results:
            result["document"] = {"text": documents[result["index"]]}
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    return to_json({"id": answer_id, "object": "list", "model": model, "results": results, "usage": usage})
