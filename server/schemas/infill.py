"""`POST /infill` in llama.cpp's shape, as llama.vim and llama.vscode send it: its fields, and the job it becomes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from backends.messages import FimFile, FimPrompt, Generate
from server.output.line_limits import LineLimits
from server.schemas.fields import (
    INT32_MAX,
    Bool,
    KeepAlive,
    Priority,
    Repetition,
    Stop,
    TokenChoice,
)
from server.schemas.problems import check
from server.schemas.surface import Surface

MAX_FILES = 1024
MAX_RESPONSE_FIELDS = 64

Milliseconds = Annotated[int, Field(ge=-1, le=INT32_MAX)] | None


def _named(value: Any) -> Any:
    """Editors send no name as an empty one."""
    return value or None if isinstance(value, str) else value


class Extra(BaseModel):
    """Another file, or a part of one."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True)
    text: str
    filename: str = "tmp"


class InfillRequest(TokenChoice):
    """The body of an infill; without a temperature the likeliest token is taken."""

    model: Annotated[str | None, BeforeValidator(_named)] = None
    input_prefix: str
    input_suffix: str
    input_extra: Annotated[list[Extra], Field(max_length=MAX_FILES, fail_fast=True)] | None = None
    prompt: str | None = None
    """Follows the prefix: the part of the line before the cursor."""
    n_predict: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    """-1: until the model ends; 0: the prompt is computed for later requests, and nothing said."""
    n_indent: Annotated[int, Field(ge=0, le=4096)] | None = None
    t_max_prompt_ms: Milliseconds = None
    t_max_predict_ms: Milliseconds = None
    stream: Bool = None
    stop: Stop = Field(default_factory=list)
    repeat_penalty: Repetition = None
    ignore_eos: Bool = None
    response_fields: Annotated[list[str], Field(max_length=MAX_RESPONSE_FIELDS, fail_fast=True)] | None = None
    cache_prompt: Bool = None
    speculation: Literal["auto", "off"] | None = None
    priority: Priority = None
    keep_alive: KeepAlive = None

    @property
    def only_prepares(self) -> bool:
        """Nothing is to be said: editors send the files ahead."""
        return self.n_predict == 0

    @property
    def ignored(self) -> list[str]:
        """Names of fields that have no effect."""
        return [name for name in self.model_extra or {} if name not in SURFACE.fields]

    @property
    def text_bytes(self) -> int:
        """Bytes of what cannot be left out."""
        return len((self.input_prefix + (self.prompt or "") + self.input_suffix).encode())

    @property
    def limits(self) -> LineLimits:
        """How long it may take, and where a line ends the answer. Preparing is never cut short."""
        prompt_ms = None if self.only_prepares else self.t_max_prompt_ms
        return LineLimits(
            prompt_s=_seconds(prompt_ms), predict_s=_seconds(self.t_max_predict_ms), indent=self.n_indent or 0
        )

    def job(self, job_id: str) -> Generate:
        """The job; preparing computes one token, which is not shown."""
        files = [FimFile(name=extra.filename, text=extra.text) for extra in self.input_extra or []]
        prompt = FimPrompt(prefix=self.input_prefix + (self.prompt or ""), suffix=self.input_suffix, files=files)
        return Generate(
            id=job_id,
            prompt=prompt,
            sampling=self.sampling(temperature=0.0, repetition_penalty=self.repeat_penalty),
            max_tokens=1 if self.only_prepares else None if self.n_predict == -1 else self.n_predict,
            stop=list(self.stop),
            ignore_eos=bool(self.ignore_eos),
            cache_prompt=self.cache_prompt is not False,
            speculation=self.speculation or "auto",
        )


def _seconds(milliseconds: int | None) -> float | None:
    """None where there is no limit: llama.cpp's 0 and -1 mean that too."""
    return milliseconds / 1000 if milliseconds is not None and milliseconds > 0 else None


SURFACE = Surface(
    path="/infill",
    name="Infill",
    summary="Fill in the middle, in llama.cpp's shape",
    model=InfillRequest,
    example={"input_prefix": "def add(a, b):\n    return ", "input_suffix": "\n", "n_predict": 32},
    refused={"grammar": ("",), "json_schema": ({},), "lora": ([],), "n_cmpl": (1,)},
)


def parse_infill(data: dict[str, Any]) -> InfillRequest:
    """The checked request. Raises ApiError 400."""
    SURFACE.refuse(data)
    return check(InfillRequest, data)
