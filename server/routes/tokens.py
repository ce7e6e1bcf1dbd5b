"""`POST /tokenize` and `/detokenize`, in shapes that clients of llama.cpp and of vLLM both read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from backends.kinds import TOKENIZE
from backends.messages import ChatPrompt, Detokenized, Tokenize, Tokenized
from backends.weight import media_bytes
from server.output.frame import to_json
from server.output.shapes import Tokens, TokenText
from server.routes.dependencies import App, parsed
from server.routes.described import Described, answers
from server.routes.running import Run
from server.routes.services import ModelFacts, Services, new_id, served_headers
from server.routes.single import single
from server.routes.unread_media import readable
from server.schemas.tokens import (
    DETOKENIZE_SURFACE,
    TOKENIZE_SURFACE,
    DetokenizeRequest,
    TokenizeRequest,
    parse_detokenize,
    parse_tokenize,
    refuse_uncountable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

router = APIRouter(route_class=Described, tags=["tokens"])
PARAMS = {"prompt": "content"}


@router.post(TOKENIZE_SURFACE.path, responses=answers(Tokens))
async def tokenize(
    request: Request, app: App, asked: Annotated[TokenizeRequest, Depends(parsed(TOKENIZE_SURFACE, parse_tokenize))]
) -> Response:
    """Token ids of a text or of a rendered conversation."""
    model = app.model(asked.model)
    job = asked.job(new_id("tok-"))
    prompt, told = await readable(app, model, job.prompt, param="messages")
    job = msgspec.structs.replace(job, prompt=prompt)
    if isinstance(job.prompt, ChatPrompt):
        job = msgspec.structs.replace(job, prompt=model.with_system(job.prompt))
    run = Run([app.pool.submit(model.entry, job)], 1, PARAMS)
    tokenized = await single(request, run, Tokenized)
    now = app.facts(model.entry)
    body = {"count": len(tokenized.tokens), "max_model_len": now.context_limit, **_tokens(asked, tokenized)}
    return Response(
        to_json(body), media_type="application/json", headers={**served_headers(model, asked.ignored), **told}
    )


@router.post(DETOKENIZE_SURFACE.path, responses=answers(TokenText))
async def detokenize(
    request: Request,
    app: App,
    asked: Annotated[DetokenizeRequest, Depends(parsed(DETOKENIZE_SURFACE, parse_detokenize))],
) -> Response:
    """The text of token ids, under both dialects' names."""
    model = app.model(asked.model)
    run = Run([app.pool.submit(model.entry, asked.job(new_id("detok-")))], 1, {"prompt": "tokens"})
    text = (await single(request, run, Detokenized)).text
    body = to_json({"content": text, "prompt": text})
    return Response(body, media_type="application/json", headers=served_headers(model, asked.ignored))


async def count_tokens(
    request: Request, app: Services, model: ModelFacts, prompt: ChatPrompt, *, params: Mapping[str, str]
) -> int:
    """How many tokens a rendered conversation has. Raises ApiError."""
    prompt, _ = await readable(app, model, prompt, param=params["prompt"])
    job = Tokenize(id=new_id("tok-"), prompt=model.with_system(prompt))
    refuse_uncountable(TOKENIZE.weight(job) - media_bytes(prompt), param=params["prompt"])
    run = Run([app.pool.submit(model.entry, job)], 1, params)
    return len((await single(request, run, Tokenized)).tokens)


def _tokens(asked: TokenizeRequest, tokenized: Tokenized) -> dict[str, Any]:
    """`tokens`, with pieces in the dialect they were asked for."""
    if tokenized.pieces is None:
        return {"tokens": tokenized.tokens}
    texts = [_piece(piece) for piece in tokenized.pieces]
    if asked.with_pieces:
        return {"tokens": [{"id": token, "piece": piece} for token, piece in zip(tokenized.tokens, texts, strict=True)]}
    strings = [piece.decode("utf-8", "replace") for piece in tokenized.pieces]
    return {"tokens": tokenized.tokens, "token_strs": strings}


def _piece(piece: bytes) -> str | list[int]:
    """A token's text, or its bytes where they are no whole characters."""
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return list(piece)
