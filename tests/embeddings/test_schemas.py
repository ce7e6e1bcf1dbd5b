"""Requests become jobs of a bounded size, and every field has a place."""

from __future__ import annotations

import array

from hypothesis import given
from hypothesis import strategies as st

from backends.messages import Embedded
from server.output.vectors import Rows, embedding_body
from server.schemas import embeddings, rerank
from server.schemas.embeddings import PIECE_BYTES, PIECE_INPUTS, parse_embedding, pieces
from server.schemas.rerank import parse_rerank
from server.schemas.surface import Use

OPENAI = {"model", "input", "encoding_format", "dimensions", "user"}


def test_every_field_has_a_place():
    assert set(embeddings.SURFACE.fields) >= OPENAI
    assert set(embeddings.EmbeddingRequest.model_fields) == set(embeddings.SURFACE.fields)
    taken = {name for name, use in rerank.SURFACE.fields.items() if use is not Use.NEUTRAL_ONLY}
    assert set(rerank.RerankRequest.model_fields) == taken


@given(st.lists(st.integers(1, 3 * PIECE_BYTES), min_size=1, max_size=600))
def test_pieces_cover_everything_once_and_are_bounded(sizes):
    found = pieces(sizes)

    assert [place for start, end in found for place in range(start, end)] == list(range(len(sizes)))
    for start, end in found:
        assert 1 <= end - start <= PIECE_INPUTS
        assert end - start == 1 or sum(sizes[start:end]) <= PIECE_BYTES


def test_jobs_know_where_they_begin():
    asked = parse_embedding({"model": "m", "input": [str(i) for i in range(600)], "dimensions": 8, "normalize": False})
    jobs = asked.jobs("id")

    assert [job.first for job in jobs] == [0, 256, 512]
    assert [text for job in jobs for text in job.inputs] == asked.input
    assert len({job.id for job in jobs}) == 3
    assert all(job.dimensions == 8 and not job.normalize for job in jobs)


def test_a_long_query_makes_smaller_jobs():
    asked = parse_rerank({"model": "m", "query": "q" * 30_000, "documents": [{"text": "a"}, "b", "c"]})

    assert [(job.first, job.documents) for job in asked.jobs("id")] == [(0, ["a", "b"]), (2, ["c"])]


def test_rows_of_several_jobs_find_their_places():
    rows = Rows(3)
    for first, places, numbers in ((2, [0], [5, 6]), (0, [1, 0], [3, 4, 1, 2])):
        rows.put(Embedded("x", places, 2, array.array("f", numbers).tobytes()), first)

    body = b"".join(embedding_body(rows, model="m", n_tokens=7, as_base64=False))

    assert rows.numbers() == [1, 2, 3, 4, 5, 6]
    assert body == (
        b'{"object":"list","data":[{"object":"embedding","embedding":[1.0,2.0],"index":0},'
        b'{"object":"embedding","embedding":[3.0,4.0],"index":1},{"object":"embedding","embedding":[5.0,6.0],"index":2}],'
        b'"model":"m","usage":{"prompt_tokens":7,"total_tokens":7}}'
    )
