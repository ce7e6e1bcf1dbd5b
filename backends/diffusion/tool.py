"""The tool `image_generation` of `/v1/responses`: a function that the model calls, and that the server runs by drawing.

What the client writes into the tool are the fields of `/v1/images/generations`; the prompt is what the model says.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

import msgspec

from backends.diffusion.kind import DRAW, Picture, Preview
from backends.diffusion.route import ImageRequest, drawing_models, parse, refuse_large
from backends.messages import Failed
from server.errors import ApiError, from_failed
from server.output.items import Change, HostedCall
from server.routes.services import ModelFacts, Services, new_id
from server.schemas.hosted import HostedTool, Wish

_FUNCTION: Final[Mapping[str, Any]] = {
    "name": DRAW.capability,
    "description": "Draw an image and show it to the user.",
    "parameters": {
        "type": "object",
        "properties": {"prompt": {"type": "string", "description": "What is to be seen, in a few words."}},
        "required": ["prompt"],
        "additionalProperties": False,
    },
}

_OURS: Final = {"prompt": "-", "stream": True}
"""Fields of a request that are not the tool's: the model says the first, and previews come as they do in a stream."""


class Drawing(HostedTool):
    """See `server.schemas.hosted.HostedTool`."""

    function = _FUNCTION

    def wished(self, app: Services, tool: Mapping[str, Any]) -> Wish | None:
        """What the client wants of it; None where no model draws. Raises ApiError 400 or 404."""
        models = drawing_models(app)
        if not models:
            return None
        own = {name: value for name, value in tool.items() if name != "type"}
        asked = parse({**own, **_OURS})
        model = models[0] if asked.model is None else app.model(asked.model)
        model.refuse_other_kind(DRAW)
        model.refuse_bad_adapter()
        refuse_large(model, asked)
        asked.jobs("", model.adapter)  # refuses what contradicts itself before the model speaks
        unused = [*asked.ignored, *(name for name in _OURS if name in own)]
        return Wish(self, tool, lambda call: _drawn(app, model, asked, call), unused)


TOOL: Final = Drawing()


async def _drawn(app: Services, model: ModelFacts, asked: ImageRequest, call: HostedCall) -> AsyncGenerator[Change]:
    """The events of one call: previews, and the image or why there is none."""
    yield call.event("generating")
    try:
        asked = asked.model_copy(update={"prompt": _prompt(call.arguments)})
        job = asked.jobs(new_id("image-"), model.adapter)[0]
        stream = app.pool.submit(model.entry, job, priority=asked.priority or 0, keep_alive_s=asked.keep_alive)
        picture: Picture | None = None
        try:
            async for event in stream:
                match event:
                    case Preview():
                        shown = base64.b64encode(event.data).decode()
                        yield call.event("partial_image", partial_image_index=event.index, partial_image_b64=shown)
                    case Picture():
                        picture = event
                    case Failed():
                        raise from_failed(event, params=DRAW.params)
                    case _:
                        pass
        finally:
            stream.cancel()
    except ApiError as problem:
        yield call.failed(problem.code, problem.message, kind=problem.type)
        return
    if picture is None:
        yield call.failed("server_error", "The image was not finished.", kind="server_error")
        return
    yield call.event("completed")
    yield call.ended(
        "completed",
        result=base64.b64encode(picture.data).decode(),
        revised_prompt=asked.prompt,
        size=f"{picture.width}x{picture.height}",
        output_format=asked.form,
        background="opaque",
    )


def _prompt(arguments: str) -> str:
    """What the model wants to be seen. Raises ApiError for a call that says nothing."""
    try:
        prompt = msgspec.json.decode(arguments).get("prompt")
    except (msgspec.DecodeError, AttributeError):
        prompt = None
    if not isinstance(prompt, str) or not prompt.strip():
        raise ApiError(400, "The model has called image_generation without a prompt.", code="invalid_prompt")
    return prompt
