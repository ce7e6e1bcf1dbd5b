"""The tables of the configuration that say nothing of single models: the server's, the budgets', the scheduler's.

All sizes are in bytes, all times in seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from backends.options import NO_BOOL, StrList
from server.settings.hours import Span
from server.settings.sizes import Size
from server.settings.values import Budget, Hosts, KeepAlive, Keys, Origins, PositiveSeconds, Seconds, Section


class ServerSection(Section):
    """`[server]`: the listener and its limits."""

    host: str = "127.0.0.1"
    """The address to listen on. One that others can reach needs a key."""
    port: Annotated[int, Field(ge=0, le=65535), NO_BOOL] = 8080
    """0 takes a free port and prints it."""
    allowed_hosts: Hosts = []
    """Names clients may call this server by, beside those of this machine; needs a key. `*.home.lan`: all below it."""
    api_keys: Keys = Field(default=[], repr=False)
    """A request needs one of these, or an admin key, when there is any of either."""
    admin_keys: Keys = Field(default=[], repr=False)
    """Keys that may also load and unload models, reload the configuration, set `keep_alive` and `priority` above 0."""
    api_key_file: str | None = None
    """A file with one key per line, `admin KEY` for an admin key, `NAME KEY` for that of `[keys.NAME]`; `#` starts a
    comment line."""
    allow_public: bool = False
    """Bind an address that others can reach although there is no key."""
    models_dirs: StrList = []
    """Folders whose models are served too, from where they lie: GGUF files, model folders, or an Ollama store."""
    watch: bool = False
    """Look at the configuration file, the key file and `models_dirs` again and again, and take over what changes."""
    cors: Origins = ["localhost"]
    """Origins of web pages that may call; `localhost` is every port of this machine's loopback names."""
    fetch_images: bool = False
    """Fetch images that requests name by an address, from the public network alone. Otherwise a request brings them."""
    max_queue: Annotated[int, Field(ge=1, le=100_000), NO_BOOL] = 64
    """Requests that may wait; more get 429."""
    request_timeout_s: PositiveSeconds = 600
    """How long a request may take; then its answer ends as far as it has come."""
    sse_keepalive_s: PositiveSeconds = 5
    """After so long without an event, a stream gets a comment."""
    max_body_bytes: Annotated[Size, Field(ge=1024)] = 16 * 2**20
    """The largest body of a request; a larger one gets 413."""
    max_upload_bytes: Annotated[Size, Field(ge=1024)] = 2**30
    """The disk space that the files of all requests may take at once; the folder is in the user's cache."""
    drain_s: Seconds = 30
    """How long running requests may finish after SIGTERM."""
    stored_responses: Annotated[int, Field(ge=0, le=1_000_000), NO_BOOL] = 1000
    """Answers of `/v1/responses` kept in memory for `previous_response_id`; the least recently used go first."""
    stored_responses_bytes: Size = 64 * 2**20
    """The memory these answers may take."""
    stored_responses_ttl_s: PositiveSeconds = 3600
    """Since the last use."""


class MemorySection(Section):
    """`[memory]`: the budgets all models share."""

    device: Literal["auto", "cuda", "cpu"] = "auto"
    """Where models run; auto: on the card where llama.cpp is built for CUDA and the driver answers."""
    budget: Budget = "auto"
    """What all models may take together; auto: what is free on the device, less `reserve`."""
    host_budget: Budget = "auto"
    """What models may take of host memory beside a card; auto: four fifths of what is free. Without a card host memory
    is the device, and the smaller of both budgets counts."""
    reserve: Size = 600 * 2**20
    """Left free on the device for others."""
    headroom: Literal["auto"] | Size = "auto"
    """What is left free on a card in place of `reserve` while another program's use of it grows, so that idle models
    leave before that program finds the card full. auto: as much again as it has taken; 0: nothing. Of an automatic
    `budget` alone."""
    on_pressure: Literal["unload", "keep"] = "unload"
    """What happens to idle models when other programs take the memory."""
    hours: dict[Span, Size] = {}
    """The most that models may take at some hours of the day, in local time: `{"09:00-18:00" = "6GiB"}`. Outside them
    `budget` counts alone. Idle models leave when such a time begins, unless `on_pressure` keeps them."""
    prefix_cache: Literal["auto"] | Size = "auto"
    """The most host memory for cached prefixes, which come back after other requests and after a swap. They are part of
    the budget of host memory and yield to models."""
    prefix_cache_disk: Size = 0
    """The same on the disk of the user's cache folder, for what has to leave memory; gone when the server ends."""


class SchedulerSection(Section):
    """`[scheduler]`: when models come and go."""

    keep_alive_s: KeepAlive = 600
    """How long an idle model stays loaded; 0: not at all, -1: for ever."""
    max_wait_s: Seconds = 60
    """How long a request waits for its model, its own drain and load not counted; then it gets 503."""
    min_residency_s: Seconds = 15
    """How long a model in use stays loaded at most while others wait for its memory."""
    preload: StrList = []
    """Names of models to load at start."""
    template_process: bool = True
    """Keep one worker process started, without a model, so that a load does not wait for Python's imports."""


class TrainingSection(Section):
    """`[training]`: fine-tuning jobs, and when they have the memory."""

    policy: Literal["idle-only", "share", "exclusive"] = "idle-only"
    """`idle-only`: a job stands still while a request is answered; `share`: it goes on beside. Both leave when a model
    needs the memory. `exclusive`: it stays until it has ended."""
    idle_after_s: Seconds = 60
    """How long no request may have come before idle models leave for a job."""
    leave_within_s: PositiveSeconds = 60
    """For a job to save and go when it has to; then it is ended, and goes on where its last checkpoint is."""


class MetricsSection(Section):
    """`[metrics]`: the Prometheus page."""

    enabled: bool = True
    """Serve the page `/metrics`."""
    vllm_names: bool = False
    """Emit every metric under vLLM's name too."""


class LoggingSection(Section):
    """`[logging]`: one line per event on stderr."""

    format: Literal["text", "json"] = "text"
    """`json` writes each event as one JSON object."""
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe events that are written."""
    prompts: bool = False
    """Let prompts appear in the log."""


class TracesSection(Section):
    """`[traces]`: OpenTelemetry spans of each job, with `onecard[traces]`."""

    endpoint: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    """The collector, over OTLP/HTTP: `http://127.0.0.1:4318/v1/traces`. None sends nothing; prompts are never sent."""
