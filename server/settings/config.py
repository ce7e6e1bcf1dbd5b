"""What can be configured: the settings as checked, immutable data with every default in its place.

Owns the keys, their types and their bounds. `server.settings.config_source` knows where values come from.
All sizes are in bytes, all times in seconds.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PrivateAttr,
    ValidationInfo,
    WithJsonSchema,
    create_model,
    field_validator,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from backends.backend import AT_MOST, Setting
from backends.messages import JsonWhitespace, KvOffload, SpeculationMode
from backends.options import NO_BOOL, AdapterOptions, Options, comma_list
from backends.registry import BACKENDS
from server.settings.named_keys import KeyConfig, KeyName
from server.settings.sampling_table import SamplingTable
from server.settings.sections import (
    LoggingSection,
    MemorySection,
    MetricsSection,
    SchedulerSection,
    ServerSection,
    TracesSection,
    TrainingSection,
)
from server.settings.values import (
    Context,
    GpuLayers,
    ItlMs,
    KeepAlive,
    KvTokens,
    KvTypeWord,
    ModelName,
    Parallel,
    Section,
    SpeculationWord,
    SystemText,
)

_SHRINKABLE: tuple[Literal["parallel"], Literal["kv_type"]] = ("parallel", "kv_type")


LAYERS_KEPT: Final = ("expert_layers", "ffn_layers")
"""Of `[defaults]`, where they count for models of many depths: each keeps as many as it has."""


class DefaultsSection(Section):
    """`[defaults]`: what a model has that does not say otherwise."""

    context: Context = "auto"
    """Tokens one request may use; auto: 8192 to begin with, more where a request needs it. A number stays as it is."""
    context_max: Context = "auto"
    """The most that `context = "auto"` may grow to; auto: what the model was trained for and the budget can hold."""
    parallel: Parallel = 2
    """Requests decoded at once."""
    kv_type: KvTypeWord = "f16"
    """Type of the KV cache; smaller types hold more context in the same memory. `q8_0/q4_0`: of keys and of values;
    `k8v4` is short for it."""
    kv_offload: KvOffload = "card"
    """Where the KV cache lies beside a card: with its layers, or in host memory (`host`), larger and slower."""
    gpu_layers: GpuLayers = "auto"
    """Layers of a GGUF file on the card; auto: as many as fit."""
    expert_layers: GpuLayers = "auto"
    """Layers of a mixture of experts whose experts lie in host memory beside a card; auto: as many as have to. A model
    with fewer such layers keeps them all there."""
    ffn_layers: GpuLayers = "auto"
    """The same of the other feed-forward weights of GGUF files."""
    max_itl_ms: ItlMs = "auto"
    """The longest a running stream should wait for its next token while prompts are computed."""
    speculation: SpeculationWord = "auto"
    """Tokens drafted ahead: `auto` from earlier text where that is faster, `model:NAME` by a small model too, `mtp` by
    the file's own layer for it, `ngram` wherever they are likely, or `off`."""
    json_whitespace: JsonWhitespace = "pretty"
    """In JSON that is enforced: `pretty` as writers put it, on one line or indented; `compact` none."""
    sampling: SamplingTable | None = None
    """How tokens are chosen where a request does not say; wins over every model's files, field by field, and a model's
    own table over it."""
    system: SystemText | None = None
    """The system message of conversations that have none; a model's own wins, and `""` is none."""


def _backend(name: str) -> str:
    if name not in ("auto", *BACKENDS):
        raise ValueError(f"a backend is one of auto, {', '.join(BACKENDS)}")
    return name


BackendName = Annotated[
    str, AfterValidator(_backend), WithJsonSchema({"enum": ["auto", *sorted(BACKENDS)], "type": "string"})
]
if TYPE_CHECKING:
    _BackendOptions = AdapterOptions
else:
    _own = dict.fromkeys(options for backend in BACKENDS.values() if (options := backend.options()) is not Options)
    _BackendOptions = create_model("_BackendOptions", __base__=tuple(_own) or Options)


def not_of(backend: str) -> dict[str, str]:
    """The keys that a backend's models have not: those of other backends, and those that it refuses; each with why."""
    own = BACKENDS[backend].options().model_fields
    others = {
        key: f"and {key} is for {other.files}"
        for other in BACKENDS.values()
        for key in other.options().model_fields
        if key not in own
    }
    return {**others, **BACKENDS[backend].refuses}


class ModelConfig(_BackendOptions, Section):
    """`[models.NAME]`: a named model; what it leaves out is taken from `[defaults]` and `[scheduler]`."""

    name: SkipJsonSchema[str] = ""
    """The table's own name; set by `Settings`."""
    path: Annotated[str, Field(min_length=1, max_length=4096)]
    """A `.gguf` file, a Hugging Face model folder, `hf:org/repo:QUANT` in the local cache, `smollm2` or `demo`."""
    backend: BackendName = "auto"
    """`gguf` for GGUF files, `bnb` for Hugging Face folders; auto: from the files."""
    aliases: Annotated[list[ModelName], BeforeValidator(comma_list)] = []
    """Other names that clients may use."""
    context: Context = "auto"
    """Tokens one request may use; auto: 8192 to begin with, more where a request needs it. A number stays as it is."""
    context_max: Context = "auto"
    """The most that `context = "auto"` may grow to; auto: what the model was trained for and the budget can hold."""
    parallel: Parallel = 2
    """Requests decoded at once."""
    kv_type: KvTypeWord = "f16"
    """Type of the KV cache; smaller types hold more context in the same memory. `q8_0/q4_0`: of keys and of values;
    `k8v4` is short for it."""
    kv_offload: KvOffload = "card"
    """Where the KV cache lies beside a card: with its layers, or in host memory (`host`), larger and slower."""
    kv_tokens: KvTokens = "auto"
    """Tokens that all requests together may hold; auto: context x parallel, less where memory is short."""
    max_itl_ms: ItlMs = "auto"
    """The longest a running stream should wait for its next token while prompts are computed."""
    speculation: SpeculationWord = "auto"
    """Tokens drafted ahead: `auto` from earlier text where that is faster, `model:NAME` by a small model too, `mtp` by
    the file's own layer for it, `ngram` wherever they are likely, or `off`."""
    gpu_layers: GpuLayers = "auto"
    """Layers of a GGUF file on the card; auto: as many as fit."""
    json_whitespace: JsonWhitespace = "pretty"
    """In JSON that is enforced: `pretty` as writers put it, on one line or indented; `compact` none."""
    sampling: SamplingTable | None = None
    """How tokens are chosen where a request does not say; wins over what the model's files say."""
    system: SystemText | None = None
    """The system message of conversations that have none."""
    pinned: bool = False
    """Once loaded it stays, whatever its keep-alive says."""
    priority: Annotated[int, Field(ge=-1000, le=1000), NO_BOOL] = 0
    """Requests for a model of higher priority go first."""
    keep_alive_s: KeepAlive = 600
    """How long it stays loaded when idle; 0: not at all, -1: for ever."""
    preload: bool = False
    """Load it at start."""
    _open: frozenset[Literal["parallel", "kv_type"]] = PrivateAttr(default=frozenset())
    _written: frozenset[str] = PrivateAttr(default=frozenset())
    _inherited: frozenset[str] = PrivateAttr(default=frozenset())

    @model_validator(mode="after")
    def _pool_holds_a_context(self) -> ModelConfig:
        if self.kv_tokens != "auto" and self.context != "auto" and self.kv_tokens < self.context:
            raise ValueError(f"kv_tokens = {self.kv_tokens} holds less than one context of {self.context} tokens")
        return self

    @model_validator(mode="after")
    def _bound_is_none_of_a_fixed_context(self) -> ModelConfig:
        if self.context != "auto" and "context_max" in self.model_fields_set and self.context_max != "auto":
            raise ValueError(f"context_max = {self.context_max} bounds context = 'auto', and context is {self.context}")
        return self

    def options_of(self, backend: str) -> dict[str, Setting]:
        """The backend's own keys as they were written down; what is stored in the model's files wins over defaults."""
        own = BACKENDS[backend].options().model_fields
        written = {key: getattr(self, key) for key in own if key in self.model_fields_set}
        for key in [key for key in LAYERS_KEPT if key in written and key in self._inherited]:
            value = written.pop(key)
            if value != "auto" and self.gpu_layers != 0:
                written[f"{key}{AT_MOST}"] = value
        return {key: _plain(value) for key, value in written.items() if not isinstance(value, dict) or value}

    def with_keys(self, **keys: Any) -> ModelConfig:
        """As if the model's own table had these."""
        copy = self.model_copy(update=keys)
        copy._inherited = self._inherited - keys.keys()  # noqa: SLF001 - a copy
        return copy

    @property
    def speculation_mode(self) -> SpeculationMode:
        """Of drafts that no model makes: those of `model:NAME` are made where that is faster."""
        modes: tuple[SpeculationMode, ...] = get_args(SpeculationMode)
        return next((mode for mode in modes if mode == self.speculation), "auto")

    @property
    def draft_name(self) -> str | None:
        """The model that is to draft for it; None: none."""
        return self.speculation.removeprefix("model:") if self.speculation.startswith("model:") else None

    def is_own(self, key: str) -> bool:
        """Whether the model's own table says it, and not `[defaults]`."""
        return key in self._written

    def called(self, name: str) -> list[str]:
        """The model's name and its aliases, each with its adapters' names behind it."""
        return [
            full for own in (name, *self.aliases) for full in (own, *(adapter_name(own, one) for one in self.adapters))
        ]

    def path_of(self, name: str, called: str) -> str:
        """What one of the names that `called` gives means: an adapter's path, else the model's."""
        taught = ((full, path) for one, path in self.adapters.items() for full in self._adapter_names(name, one))
        return next((path for full, path in taught if full == called), self.path)

    def _adapter_names(self, name: str, adapter: str) -> list[str]:
        return [adapter_name(own, adapter) for own in (name, *self.aliases)]

    @property
    def open(self) -> frozenset[Literal["parallel", "kv_type"]]:
        """What was not written down, so that a small budget may make it smaller; set by `Settings`."""
        return self._open

    def of_other_backend(self, backend: str) -> tuple[str, str] | None:
        """A key of the model's own table that asks for what this backend has not, and why; None where there is none."""
        refused = not_of(backend)
        written = ((key, getattr(self, key)) for key in refused if key in self._written)
        asking = (key for key, value in written if value not in ("none", "auto") and value is not False)
        return next(((key, refused[key]) for key in asking), None)


TUNED: Final = "ft:"
"""How the names of models begin that fine-tuning jobs have made."""


def adapter_name(model: str, adapter: str) -> str:
    """What clients call a model's adapter: `MODEL:ADAPTER`; one that a job here has made has a whole name already."""
    return adapter if adapter.startswith(TUNED) else f"{model}:{adapter}"


class Settings(Section):
    """Everything `onecard serve` was told, checked. Building one reads neither environment nor files."""

    server: ServerSection = ServerSection()
    memory: MemorySection = MemorySection()
    scheduler: SchedulerSection = SchedulerSection()
    defaults: DefaultsSection = DefaultsSection()
    training: TrainingSection = TrainingSection()
    metrics: MetricsSection = MetricsSection()
    logging: LoggingSection = LoggingSection()
    traces: TracesSection = TracesSection()
    keys: dict[KeyName, KeyConfig] = {}
    models: dict[ModelName, ModelConfig] = {}

    @property
    def every_key(self) -> list[str]:
        """Those of `[server]` and of `[keys]`, those that may do most first."""
        named = [(one.admin, one.key) for one in self.keys.values() if one.key is not None]
        admins, plain = ([key for admin, key in named if admin is wanted] for wanted in (True, False))
        return [*self.server.admin_keys, *admins, *self.server.api_keys, *plain]

    @field_validator("models")
    @classmethod
    def _fold_defaults(cls, models: dict[str, ModelConfig], info: ValidationInfo) -> dict[str, ModelConfig]:
        """Names written into the models, defaults folded in, names and aliases checked against each other."""
        check_names_differ(models)
        defaults, scheduler = info.data.get("defaults"), info.data.get("scheduler")
        if defaults is None or scheduler is None:
            return models
        folded = {}
        for name, model in models.items():
            inherited: dict[str, Any] = {**dict(defaults), "keep_alive_s": scheduler.keep_alive_s}
            update = {key: value for key, value in inherited.items() if key not in model.model_fields_set}
            update["sampling"] = _over(defaults.sampling, model.sampling)
            preload = model.preload or not set(scheduler.preload).isdisjoint(model.called(name))
            folded[name] = model.model_copy(update={**update, "name": name, "preload": preload})
            written = model.model_fields_set | defaults.model_fields_set
            folded[name]._open = frozenset(key for key in _SHRINKABLE if key not in written)  # noqa: SLF001 - a copy
            folded[name]._written = frozenset(model.model_fields_set)  # noqa: SLF001
            folded[name]._inherited = frozenset(update)  # noqa: SLF001
        return folded


def _plain(value: Any) -> Setting:
    """A value as workers get it."""
    if isinstance(value, dict):
        return json.dumps(value)
    return ",".join(value) if isinstance(value, list) else value


def _over(defaults: SamplingTable | None, own: SamplingTable | None) -> SamplingTable | None:
    """A model's own table, and what it leaves out from the defaults'."""
    if defaults is None or own is None:
        return own or defaults
    return SamplingTable(**(defaults.model_dump(exclude_none=True) | own.model_dump(exclude_none=True)))


def check_names_differ(models: dict[str, ModelConfig]) -> None:
    """Every name and alias means one model. Raises ValueError."""
    owner = {name: name for name in models}
    for name, model in models.items():
        if model.name not in ("", name):
            raise ValueError(f"the table [models.{name}] holds name = '{model.name}'; the table's own name is the name")
        for alias in model.aliases:
            if alias in owner:
                other = "a model's name" if owner[alias] == alias else f"an alias of '{owner[alias]}'"
                raise ValueError(f"alias '{alias}' of model '{name}' is already {other}")
            owner[alias] = name
    for name, model in models.items():
        for called in (name, *model.aliases):
            for adapter in model.adapters:
                if (full := adapter_name(called, adapter)) in owner:
                    raise ValueError(f"adapter '{adapter}' of model '{name}' would be '{full}', which is another name")
