"""`GET /api/version`, `/api/tags` and `/api/ps`, `POST /api/show`: the models, in Ollama's shape.

None of them loads or keeps a model.
"""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any, Final

from fastapi import APIRouter, Depends
from starlette.responses import Response

from server.output.frame import to_json
from server.output.ollama import time_text
from server.output.ollama_shapes import (
    OllamaDetails,
    OllamaModel,
    OllamaModels,
    OllamaResident,
    OllamaResidents,
    OllamaShown,
    OllamaVersion,
)
from server.routes.dependencies import App, parsed
from server.routes.described import Described, answers
from server.routes.ollama import called, near
from server.schemas.ollama_models import SHOW, NamedBody, parse_named
from server.settings.sampling import plain_sampling

if TYPE_CHECKING:
    from server.pool.status import ModelStatus
    from server.routes.services import ModelFacts, Services

router = APIRouter(route_class=Described, tags=["Ollama"], dependencies=[Depends(near)])
SPOKEN: Final = "0.14.0"
"""The version of Ollama whose API this is: clients look for the oldest that has what they need."""
_NO_END: Final = timedelta(days=106_751)
"""Go's longest duration, which Ollama's clients take for `for ever`."""
_NAMES: Final = {"infill": "insert"}
_ALSO: Final = frozenset({"completion", "tools", "vision", "thinking", "embedding", "insert"})
_UNITS: Final = {"K": 10**3, "M": 10**6, "B": 10**9}


@router.get("/api/version", responses=answers(OllamaVersion))
async def ollama_version() -> Response:
    """The version of Ollama's API that is spoken here."""
    return _json(OllamaVersion(version=SPOKEN, server=f"onecard {version('onecard')}"))


@router.get("/api/tags", responses=answers(OllamaModels))
async def ollama_tags(app: App) -> Response:
    """Every model."""
    models = await app.listed(*app.all_models())
    return _json(OllamaModels(models=[_model(model, app) for model in models]))


@router.get("/api/ps", responses=answers(OllamaResidents))
async def ollama_ps(app: App) -> Response:
    """The models that are loaded."""
    on_card = (status := app.pool.status()).memory.device == "cuda"
    found = [(model, app.catalog.resolve(model.name)) for model in status.models if model.predicted_bytes is not None]
    listed = [_resident(now, app.facts(entry), app, on_card=on_card) for now, entry in found if entry is not None]
    return _json(OllamaResidents(models=listed))


@router.post(SHOW.path, responses=answers(OllamaShown))
async def ollama_show(app: App, asked: Annotated[NamedBody, Depends(parsed(SHOW, parse_named))]) -> Response:
    """What one model is and can do; its context is the one that requests can use."""
    (model,) = await app.listed(called(app, asked.called))
    about = {} if model.header is None else dict(model.header.about)
    sampling = plain_sampling(model.entry.config, model.header)
    options = [*sampling.items(), *([("num_ctx", model.context_limit)] if model.context_limit else [])]
    shown = OllamaShown(
        modelfile="".join(
            f"{line}\n" for line in [f"FROM {model.name}", *(f"PARAMETER {k} {v:g}" for k, v in options)]
        ),
        parameters="\n".join(f"{name} {value:g}" for name, value in options),
        template="",
        details=_details(model),
        model_info=_info(model, about),
        capabilities=_capabilities(model),
        modified_at=_changed(model, app),
    )
    if "licence" in about:
        shown["license"] = about["licence"]
    return _json(shown)


def _model(model: ModelFacts, app: Services) -> OllamaModel:
    return OllamaModel(
        name=model.name,
        model=model.name,
        modified_at=_changed(model, app),
        size=model.entry.size_bytes,
        digest=_digest(model),
        details=_details(model),
        capabilities=_capabilities(model),
    )


def _resident(now: ModelStatus, model: ModelFacts, app: Services, *, on_card: bool) -> OllamaResident:
    device_bytes = now.measured_bytes or now.predicted_bytes or 0
    host_bytes = 0 if now.host is None else now.host.measured_bytes or now.host.predicted_bytes
    left_s = now.unload_in_s if now.unload_in_s is not None else now.keep_alive_s
    left = _NO_END if left_s < 0 or now.pinned else min(_NO_END, timedelta(seconds=left_s))
    return OllamaResident(
        name=model.name,
        model=model.name,
        size=device_bytes + host_bytes,
        digest=_digest(model),
        details=_details(model),
        expires_at=time_text(datetime.now(UTC) + left),
        size_vram=device_bytes if on_card else 0,
        context_length=now.context or 0,
    )


def _details(model: ModelFacts) -> OllamaDetails:
    about = {} if model.header is None else model.header.about
    family = about.get("architecture", "")
    return OllamaDetails(
        parent_model=model.entry.name if model.adapter else "",
        format=model.entry.backend,
        family=family,
        families=[family] if family else [],
        parameter_size=about.get("parameters", ""),
        quantization_level=about.get("quantisation", ""),
    )


def _info(model: ModelFacts, about: dict[str, str]) -> dict[str, Any]:
    """What is known under the names of GGUF files, where clients look for the context."""
    family = about.get("architecture", "model")
    info: dict[str, Any] = {"general.architecture": family, "general.basename": model.name}
    if found := re.fullmatch(r"([\d.]+)([KMB]?)", about.get("parameters", "")):
        info["general.parameter_count"] = round(float(found[1]) * _UNITS.get(found[2], 1))
    if model.header is not None and model.header.n_layers:
        info[f"{family}.block_count"] = model.header.n_layers
    if model.context_limit:
        info[f"{family}.context_length"] = model.context_limit
    if model.trained_context:
        info["onecard.trained_context_length"] = model.trained_context
    return info


def _capabilities(model: ModelFacts) -> list[str]:
    """In Ollama's words."""
    return [name for name in (_NAMES.get(one, one) for one in model.capabilities) if name in _ALSO]


def _changed(model: ModelFacts, app: Services) -> str:
    """When the model's file was changed; where it is not known, when the server was started."""
    seconds = model.info.changed_ns / 1e9 or app.started_unix
    return time_text(datetime.fromtimestamp(seconds, UTC))


def _digest(model: ModelFacts) -> str:
    """What tells this model's file from others: of no bytes of it, so that no one waits for gigabytes to be read."""
    return hashlib.sha256(f"{model.name}|{model.info.file or ''}".encode()).hexdigest()


def _json(value: Any) -> Response:
    return Response(to_json(value), media_type="application/json")
