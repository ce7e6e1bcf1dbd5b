"""`onecard serve`: its flags and help; they become keys of the configuration, and `server.cli.serve` starts."""

from __future__ import annotations

from typing import Annotated

import typer

from server.cli.arguments import ConfigFile


def serve(
    config: ConfigFile = None,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="NAME=PATH", help="A model to serve; may be given more than once."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on [8080]; 0 takes a free one.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu.")] = None,
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory for all models: auto or 11.2GiB.")] = None,
    host_budget: Annotated[str | None, typer.Option(metavar="SIZE", help="Host memory for them beside a card.")] = None,
    reserve: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory left to others [600MiB].")] = None,
    context: Annotated[str | None, typer.Option(metavar="N", help="Tokens one request may use, or auto.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Requests a model decodes at once [2].")] = None,
    kv_type: Annotated[str | None, typer.Option(help="Type of the KV cache: f16, q8_0, q8_0/q4_0, ...")] = None,
    max_queue: Annotated[int | None, typer.Option(help="Requests that may wait [64].")] = None,
    api_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A key clients must send; other users see it in `ps`.")
    ] = None,
    admin_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="A key that may also load and unload models.")
    ] = None,
    api_key_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Keys, one per line; 'admin KEY' for an admin key.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name clients may call the server by, or *.NAME; needs a key."),
    ] = None,
    allow_public: Annotated[
        bool | None, typer.Option("--allow-public", help="Listen on a public address without a key.")
    ] = None,
    models_dir: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Serve the models of a folder or of an Ollama store too; may repeat."),
    ] = None,
    watch: Annotated[
        bool | None, typer.Option("--watch", help="Take over what changes in the configuration and in --models-dir.")
    ] = None,
    pull: Annotated[bool, typer.Option("--pull", help="Fetch configured models that are not in the cache.")] = False,
    preload: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Load this model at start.")] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.")] = None,
    exit_with_stdin: Annotated[bool, typer.Option("--exit-with-stdin", hidden=True)] = False,
) -> None:
    """Serve models over HTTP; without a model named, the built-in `smollm2` and `demo`."""
    from server.cli.flags import Flags, model_flags
    from server.cli.serve import run_server

    flags = Flags()
    flags.put("server", host=host, port=port, max_queue=max_queue, api_keys=api_key, api_key_file=api_key_file)
    flags.put("server", admin_keys=admin_key, allowed_hosts=allowed_host, allow_public=allow_public)
    flags.put("server", models_dirs=models_dir, watch=watch)
    flags.put("memory", device=device, budget=budget, host_budget=host_budget, reserve=reserve)
    flags.put("scheduler", preload=preload)
    flags.put("defaults", context=context, parallel=parallel, kv_type=kv_type)
    flags.put("logging", format=log_format)
    flags.put("models", **model_flags(model or []))
    run_server(config, flags=flags.values, pull=pull, exit_with_stdin=exit_with_stdin)
