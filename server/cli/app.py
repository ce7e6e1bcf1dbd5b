"""Commands, their flags and help (`serve` has its own file); each does its work in a module imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.main import get_command

from server.cli.arguments import AnyModel, AsJson, ConfigFile, ServedModel, Url
from server.cli.batch import batch
from server.cli.cluster import cluster_app
from server.cli.completing import model_names
from server.cli.config_app import config_app
from server.cli.connect.command import connect
from server.cli.console import EXIT_CODES
from server.cli.doctor.command import doctor
from server.cli.draw import draw
from server.cli.lend import lend
from server.cli.quantize import quantize
from server.cli.serve_command import serve
from server.cli.service.command import logs, service_app
from server.cli.train import train
from server.cli.transcribe import transcribe
from server.cli.usage import usage

if TYPE_CHECKING:
    from typer._click import Command, Context

app = typer.Typer(
    name="onecard",
    help="One card, every model: an OpenAI-compatible server for many models on one consumer GPU.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EXIT_CODES,
)
app.add_typer(config_app, name="config")
app.add_typer(service_app, name="service")
app.add_typer(cluster_app, name="cluster")
for command_of_its_own in (quantize, connect, doctor, logs, transcribe, draw, batch, train, lend, usage, serve):
    app.command()(command_of_its_own)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"onecard {version('onecard')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model of the server, a path, an hf: reference, or one that is built in; without it you pick one.",
            autocompletion=model_names,
        ),
    ] = None,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORDS]...", help="What to ask; without it a chat begins.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="System message.")] = None,
    temperature: Annotated[str | None, typer.Option(metavar="T", help="0 to 2; 0 always takes the likeliest.")] = None,
    think: Annotated[bool | None, typer.Option("--think/--no-think", help="Whether the model reasons first.")] = None,
    answer_format: Annotated[
        str | None, typer.Option("--format", metavar="F", help="json, a JSON schema, or a file that holds one.")
    ] = None,
    keep_alive: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long the model stays afterwards: 5m, 0, -1 for ever.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="An image to send; may repeat.")] = None,
    audio: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A sound to send; may repeat.")] = None,
    file: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A text file to send; may repeat.")] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Tell tokens and times after each answer.")] = False,
    url: Url = None,
    config: ConfigFile = None,
) -> None:
    """Chat in the terminal; starts a server for the while when none answers."""
    from server.cli.run import Wishes, run_chat

    fields = {"temperature": temperature, "keep_alive": keep_alive, "format": answer_format}
    wishes = Wishes(
        system=system,
        fields={name: value for name, value in fields.items() if value is not None},
        think=think,
        images=image or [],
        sounds=audio or [],
        files=file or [],
        verbose=verbose,
    )
    run_chat(model, words or [], wishes, url=url, config=config)


@app.command()
def ps(
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option("--every", min=0.1, metavar="S", help="Seconds between two looks.")] = 1.0,
) -> None:
    """Show the server's models, what they hold of the budget, and the queue."""
    from server.cli.ps import show_status, watch_status

    if watch and as_json:
        raise typer.BadParameter("--watch shows a table; for JSON ask again, or read GET /v1/events")
    if watch:
        watch_status(url=url, config=config, every_s=every)
    else:
        show_status(url=url, config=config, as_json=as_json)


@app.command()
def load(
    model: ServedModel,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Load a model and wait until it is ready; exit code 3 when it does not fit.

    A server with keys wants an admin key in ONECARD_API_KEY.
    """
    from server.cli.residents import load as load_model

    load_model(model, url=url, config=config, as_json=as_json)


@app.command()
def unload(
    model: ServedModel,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Let a model finish what it runs, then give its memory back.

    A server with keys wants an admin key in ONECARD_API_KEY.
    """
    from server.cli.residents import unload as unload_model

    unload_model(model, url=url, config=config, as_json=as_json)


@app.command()
def fit(
    model: AnyModel,
    context: Annotated[int | None, typer.Option(min=8, metavar="N", help="Tokens one request may use.")] = None,
    parallel: Annotated[int | None, typer.Option(min=1, max=256, metavar="N", help="Requests decoded at once.")] = None,
    kv_type: Annotated[
        str | None, typer.Option(metavar="T", help="Type of the KV cache: f16, q8_0, q8_0/q4_0, ...")
    ] = None,
    expert_layers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Layers whose experts lie in host memory.")
    ] = None,
    ffn_layers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Layers whose other feed-forward weights do.")
    ] = None,
    other: Annotated[
        list[str] | None, typer.Option("--with", metavar="OTHER", help="A model taken to be resident; may repeat.")
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory for all models: auto or 11.2GiB.")] = None,
    host_budget: Annotated[str | None, typer.Option(metavar="SIZE", help="Host memory for them beside a card.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cuda or cpu.")] = None,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show the plan of a load in bytes, without loading anything; exit code 3 when no plan fits.

    A running server that has the model is asked; --with, --budget, --host-budget and --device are computed here.
    """
    from server.cli.fit import show_fit
    from server.cli.flags import Flags

    flags = Flags()
    flags.put("memory", budget=budget, host_budget=host_budget, device=device)
    asked = {"context": context, "parallel": parallel, "kv_type": kv_type}
    asked |= {"expert_layers": expert_layers, "ffn_layers": ffn_layers}
    show_fit(model, others=other or [], asked=asked, flags=flags.values, url=url, config=config, as_json=as_json)


@app.command()
def bench(
    model: AnyModel,
    parallel: Annotated[
        str | None, typer.Option(metavar="N,N", help="Requests at once [1,2,4,8 as far as the server goes].")
    ] = None,
    prompt: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of each prompt.")] = 64,
    generate: Annotated[int, typer.Option(min=2, metavar="N", help="Tokens of each answer.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, max=100, metavar="N", help="Repetitions; the best rate counts.")] = 3,
    bare: Annotated[bool, typer.Option("--bare/--no-bare", help="Also measure the same work without a server.")] = True,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the figures.")] = None,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model: time to first token, inter-token latency, tokens per second, share of the baseline's speed."""
    from server.cli.bench import run_bench

    run_bench(
        model,
        parallel=parallel,
        n_prompt=prompt,
        n_generate=generate,
        rounds=rounds,
        bare=bare,
        svg=svg,
        url=url,
        config=config,
        as_json=as_json,
    )


@app.command("pull")
def pull_model(
    model: Annotated[str, typer.Argument(help="owner/name, owner/name:Q4_K_M, or the address of the model's page.")],
    quant: Annotated[
        str | None, typer.Option(metavar="Q", help="A quantisation; auto: the largest that fits into the memory.")
    ] = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="Progress as lines of JSON, the last one as --json prints it.")
    ] = False,
) -> None:
    """Fetch a model into the Hugging Face cache; its plan of a load is shown before. Goes on where it broke off.

    Exit code 3 when nothing of it fits. HF_TOKEN opens gated models, HF_ENDPOINT names a mirror.
    """
    from server.cli.pull import pull

    pull(model, quant=quant, config=config, as_json=as_json, json_lines=json_lines)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(help="What a model's name should hold.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, metavar="N", help="Models to show.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Look for models on the hub, those with GGUF files first."""
    from server.cli.search import show_found

    show_found(" ".join(words), limit=limit, as_json=as_json)


@app.command()
def show(
    model: AnyModel,
    url: Url = None,
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what a model is, what it can do, what it takes and where it lies; a running server is asked first."""
    from server.cli.show import show_model

    show_model(model, url=url, config=config, as_json=as_json)


@app.command("rm")
def remove_model(
    model: Annotated[str, typer.Argument(help="A model that lies in the Hugging Face cache.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    config: ConfigFile = None,
) -> None:
    """Remove a model from the Hugging Face cache; asks first, and touches nothing outside of it."""
    from server.cli.rm import remove

    remove(model, yes=yes, config=config)


@app.command("list")
def list_models(url: Url = None, config: ConfigFile = None, as_json: AsJson = False) -> None:
    """List the models of the running server, else of the configuration, and those in the Hugging Face cache."""
    from server.cli.listing import show_models

    show_models(config, url=url, as_json=as_json)


def command() -> Command:
    """The whole command line, whose flags that take no value show none in `--help`."""
    whole = get_command(app)
    _blank(whole, whole.context_class(whole, **whole.context_settings))
    return whole


def _blank(of: Command, context: Context) -> None:
    for parameter in of.get_params(context):
        if getattr(parameter, "is_flag", False) and parameter.metavar is None:
            parameter.metavar = ""
    for below in getattr(of, "commands", {}).values():
        _blank(below, below.context_class(below, parent=context))
