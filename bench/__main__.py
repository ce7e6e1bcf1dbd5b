"""`python -m bench`: without a command the whole comparison; each command is one of its measurements."""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from backends import alone
from backends.gguf import bare
from backends.gguf.library_log import supports_gpu
from backends.workload import Workload
from bench import (
    adapters,
    bnb,
    compare,
    constraint,
    draft_pair,
    embed,
    engine,
    llama_server,
    mix,
    model,
    peers,
    predicting,
    report,
    requests,
    scenarios,
    serve_hf,
    speculation,
    speculation_peers,
    speech,
    swap,
    ties,
    trace,
    trace_http,
)
from bench.cluster import command as cluster
from bench.figures import emit
from bench.serving import MODEL_NAME
from server.bench.load import chat, run, summary
from server.settings.builtin import built_in_path, why_missing

MAX_STREAMS = 256
SCENARIOS: Mapping[str, Callable[[], dict[str, float]]] = {
    "stall": scenarios.stall,
    "prefix": scenarios.prefix,
    "conversation": scenarios.conversation,
    "pool": scenarios.pool,
    "ties": ties.measure,
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    for name, default, text in (
        ("streams", 1, "streams at once"),
        ("prompt", 32, "tokens of each prompt"),
        ("generate", 256, "tokens generated per stream"),
        ("context", 2048, "tokens one stream may use"),
        ("threads", 0, "compute threads; 0: all cores"),
    ):
        shared.add_argument(f"--{name}", type=int, default=default, help=f"{text} (default {default})")
    shared.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; else with top_p 0.95")
    shared.add_argument("--rounds", type=int, default=0, help="repetitions; the best counts, in `all` each is a ratio")
    shared.add_argument("--json", action="store_true", help="print one JSON line")
    commands.add_parser("all", parents=[shared], help="the whole comparison (the default)")
    commands.add_parser("bare", parents=[shared], help="llama_decode and sampling alone")
    commands.add_parser("engine", parents=[shared], help="the engine without its server")
    commands.add_parser("python", parents=[shared], help="the engine's own Python per step")
    commands.add_parser("constraint", parents=[shared], help="tokens per second under a schema; a new schema's cost")
    load = commands.add_parser("load", parents=[shared], help="streams against a running server")
    load.add_argument("url", help="such as http://127.0.0.1:8080")
    load.add_argument("--model", default=MODEL_NAME)
    mixed = commands.add_parser(
        "mix", parents=[shared], help="long prompts beside running streams, on a running server"
    )
    mixed.add_argument("url")
    traces = commands.add_parser("trace", help="more models than fit: loads and waits, against first come first served")
    traces.add_argument("--json", action="store_true", help="print one JSON line")
    folders = commands.add_parser("bnb", help="folders in 16, 8 and 4 bits, against transformers' continuous batching")
    folders.add_argument("--rounds", type=int, default=2, help="processes of each side, taking turns (default 2)")
    folders.add_argument("--json", action="store_true", help="print one JSON line")
    served = commands.add_parser("serve-hf", help="onecard serve against transformers serve, over HTTP")
    served.add_argument("--rounds", type=int, default=2, help="servers of each side, taking turns (default 2)")
    served.add_argument("--json", action="store_true", help="print one JSON line")
    beside = commands.add_parser("peers", help="onecard beside llama-server and the bare loop, over HTTP, taking turns")
    beside.add_argument("path", nargs="?", type=Path, help="a GGUF file (default: the random model in Q8_0)")
    beside.add_argument("--llama-server", type=Path, help="the program (default: on PATH, else built once)")
    beside.add_argument("--rounds", type=int, default=5, help="runs of each side (default 5)")
    beside.add_argument("--generate", type=int, default=256, help="tokens generated per stream (default 256)")
    beside.add_argument("--beside", type=float, default=0.0, help="share of a core another process takes (default 0)")
    beside.add_argument("--json", action="store_true", help="print one JSON line")
    taught = commands.add_parser("adapters", help="8 streams of a model and four adapters against 8 of the model alone")
    taught.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    taught.add_argument("--backends", default="bnb,gguf", help="which (default bnb,gguf)")
    taught.add_argument("--json", action="store_true", help="print one JSON line")
    swaps = commands.add_parser("swap", help="swapping tiny models: time to first token, and the server's share")
    swaps.add_argument("--rounds", type=int, default=20, help="swaps that are measured (default 20)")
    swaps.add_argument("--pause", type=float, default=0.0, help="seconds between requests (default 0: back to back)")
    swaps.add_argument("--no-template", action="store_true", help="without the process that workers are copies of")
    swaps.add_argument("--json", action="store_true", help="print one JSON line")
    embeds = commands.add_parser("embed", help="64 texts in one call to /v1/embeddings against 64 calls in a row")
    embeds.add_argument("path", nargs="?", type=Path, help="an embedding model (default: all-MiniLM-L6-v2 in F16)")
    embeds.add_argument("--words", type=int, default=3, help="words of a text (default 3)")
    embeds.add_argument("--rounds", type=int, default=3, help="repetitions, of which the median counts (default 3)")
    embeds.add_argument("--json", action="store_true", help="print one JSON line")
    spoken = commands.add_parser("speech", help="recordings in 8 bits beside faster-whisper in int8, and four at once")
    spoken.add_argument("folder", type=Path, help="a Whisper folder")
    spoken.add_argument("peer", type=Path, help="the same model as faster-whisper takes it")
    spoken.add_argument("--python", type=Path, default=Path(sys.executable), help="a Python that has faster-whisper")
    spoken.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    spoken.add_argument("--threads", type=int, default=2, help="cores and threads of each side (default 2)")
    spoken.add_argument("--json", action="store_true", help="print one JSON line")
    idle = commands.add_parser("requests", help="requests that ask no model: this tree and another, taking turns")
    idle.add_argument("other", type=Path, help="the other tree, such as a worktree of the commit before")
    idle.add_argument("--rounds", type=int, default=20, help="turns of 50 requests on each side (default 20)")
    idle.add_argument("--json", action="store_true", help="print one JSON line")
    drafted = commands.add_parser("speculation", help="drafted tokens against none, by task and streams, taking turns")
    drafted.add_argument("path", nargs="?", type=Path, help="a GGUF file (default: the built-in smollm2)")
    drafted.add_argument("--modes", default="auto,ngram", help="which to hold against off (default auto,ngram)")
    drafted.add_argument("--at-once", default="1,2,4,8", help="streams at once (default 1,2,4,8)")
    drafted.add_argument("--rounds", type=int, default=3, help="turns of each side (default 3)")
    drafted.add_argument("--threads", type=int, default=0, help="compute threads; 0: all cores")
    drafted.add_argument("--draft", type=Path, help="a GGUF file that drafts, beside earlier text")
    drafted.add_argument("--pair", type=float, help="a made pair that agrees in this share of tokens, such as 0.8")
    drafted.add_argument(
        "--mtp", type=float, help="a made model whose predicting layer is right in this share of tokens"
    )
    drafted.add_argument("--peer", action="store_true", help="beside llama-server with its own kinds of speculation")
    drafted.add_argument("--json", action="store_true", help="print one JSON line")
    cluster.add_options(
        commands.add_parser("cluster", help="the router of a cluster over modelled nodes, beside others")
    )
    for name, measure in SCENARIOS.items():
        scenario = commands.add_parser(name, help=(measure.__doc__ or "").splitlines()[0])
        scenario.add_argument("--json", action="store_true", help="print one JSON line")
    commands.add_parser("model", help="make the measured model and print its path")
    return parser


def _load(options: argparse.Namespace) -> Workload:
    if not 1 <= options.streams <= MAX_STREAMS:
        raise SystemExit(f"--streams is 1 to {MAX_STREAMS}")
    layers = -1 if supports_gpu() else 0  # as a server with `device = "auto"` does
    given = vars(options) | {"n_prompt": options.prompt, "n_generate": options.generate, "gpu_layers": layers}
    return Workload(**{field.name: given[field.name] for field in fields(Workload) if field.name in given})


def _against_server(options: argparse.Namespace, load: Workload) -> dict[str, float]:
    """The best of the rounds, each with prompts that the server has never seen: it would know those of a run before."""
    runs = []
    unseen = secrets.randbits(48)
    top_p = load.top_p if load.temperature else 1.0
    for index in range(options.rounds or 1):
        first = unseen + index * MAX_STREAMS
        prompts = [model.digits(load.n_prompt, seed) for seed in range(first, first + load.streams)]
        requests = [
            chat(options.model, prompt, load.n_generate, temperature=load.temperature, top_p=top_p)
            for prompt in prompts
        ]
        runs.append(summary(run(options.url, requests)))
    return max(runs, key=lambda figures: figures["tokens_per_s"])


def _all(options: argparse.Namespace, load: Workload) -> int:
    about = report.machine()
    figures = compare.compare(load, rounds=options.rounds or 3, say=lambda line: print(line, file=sys.stderr))
    _, table = report.write(model.OUT, figures, load, about)
    print(table.read_text(), end="")
    return 0 if all(figure.kept is not False for figure in figures) else 1


def _peers(options: argparse.Namespace) -> dict[str, str]:
    program = llama_server.find(options.llama_server)
    terms = peers.Terms(
        path=options.path or model.path(quantisation="Q8_0"),
        rounds=options.rounds,
        n_generate=options.generate,
        beside=options.beside,
    )
    about = {"file": terms.path.name, "llama-server": llama_server.version(program), "beside": f"{terms.beside:g}"}
    return about | peers.measure(terms, program, say=lambda line: print(line, file=sys.stderr))


def _speculation(options: argparse.Namespace) -> dict[str, str]:
    path, draft = options.path or built_in_path("smollm2"), options.draft
    if path is None:
        raise SystemExit(why_missing("smollm2"))
    if options.pair is not None:
        path, draft = draft_pair.path(options.pair)
    if options.mtp is not None:
        path = predicting.path(options.mtp)
    if options.peer:
        program = llama_server.find(None)
        about = {"file": path.name, "llama-server": llama_server.version(program)}
        return about | speculation_peers.measure(
            path,
            program,
            draft=draft,
            mtp=options.mtp is not None,
            rounds=options.rounds,
            n_generate=120,
            say=lambda line: print(line, file=sys.stderr),
        )
    return speculation.measure(
        path,
        draft=draft,
        mtp=options.mtp is not None,
        modes=options.modes.split(","),
        streams=[int(n) for n in options.at_once.split(",")],
        rounds=options.rounds,
        threads=options.threads,
        say=lambda line: print(line, file=sys.stderr),
    )


def main(arguments: list[str]) -> int:
    """Run one command; 1 when a target is missed."""
    if not arguments or (arguments[0].startswith("--") and arguments[0] != "--help"):
        arguments = ["all", *arguments]
    options = _parser().parse_args(arguments)
    if options.command == "model":
        print(model.path())
        return 0
    if options.command in SCENARIOS:
        emit(SCENARIOS[options.command](), as_json=options.json)
        return 0
    if options.command == "trace":
        emit(trace.measure() | trace_http.measure(), as_json=options.json)
        return 0
    if options.command == "cluster":
        emit(cluster.measure(options), as_json=options.json)
        return 0
    if options.command == "bnb":
        emit(bnb.measure(options.rounds), as_json=options.json)
        return 0
    if options.command == "adapters":
        emit(adapters.measure(options.rounds, options.backends.split(",")), as_json=options.json)
        return 0
    if options.command == "serve-hf":
        emit(serve_hf.measure(options.rounds), as_json=options.json)
        return 0
    if options.command == "peers":
        emit(_peers(options), as_json=options.json)
        return 0
    if options.command == "swap":
        figures = swap.measure(rounds=options.rounds, template=not options.no_template, pause_s=options.pause)
        emit(figures, as_json=options.json)
        return 0
    if options.command == "requests":
        emit(requests.measure(options.other, rounds=options.rounds), as_json=options.json)
        return 0
    if options.command == "speculation":
        emit(_speculation(options), as_json=options.json)
        return 0
    if options.command == "speech":
        terms = {"rounds": options.rounds, "threads": options.threads}
        emit(speech.measure(options.folder, options.peer, options.python, **terms), as_json=options.json)
        return 0
    if options.command == "embed":
        emit(embed.measure(options.path, words=options.words, rounds=options.rounds), as_json=options.json)
        return 0
    load = _load(options)
    if options.command == "all":
        return _all(options, load)
    rounds = options.rounds or 1
    if options.command == "bare":
        figures = bare.measure(model.path(), load, rounds=rounds)
    elif options.command == "engine":
        figures = alone.throughput(model.path(), load, rounds=rounds)
    elif options.command == "python":
        figures = engine.python_per_step(model.path(), load)
    elif options.command == "constraint":
        figures = constraint.measure(model.path(), load, rounds=options.rounds or 3)
    elif options.command == "mix":
        figures = mix.measure(options.url)
    else:
        figures = _against_server(options, load)
    emit(figures, as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
