"""The demo model, which knows nothing of JSON, under schemas and tools: every answer it ends itself validates."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from backends import registry
from backends.engine import Engine
from backends.formats.known import named
from backends.formats.pieces import CallArguments, CallBegins
from backends.messages import ChatPrompt, Failed, Generate, JsonSchema, Sampling, ToolCalls
from server.schemas.json_schema import checked
from tests.constraints.schemas import REAL
from tests.formats.recorded import ADD, WEATHER
from tests.formats.walks import function
from tests.gguf.driver import Outcome, run
from tests.present import present
from tests.specs import spec_of

pytestmark = pytest.mark.engine

PROMPTS = [
    "What is the capital of France?",
    "What is 3 plus 4?",
    "What is the weather in Paris?",
    "Count from 1 to 5.",
    "Write a person as JSON.",
]
TEMPERATURES = [0.0, 0.7, 1.0, 1.5]
SCHEMAS = {name: schema for name, schema in REAL.items() if name != "tree"}
DEMO_WEATHER = {
    "type": "function",
    "function": {
        **WEATHER["function"],
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
DEMO_ADD = {
    "type": "function",
    "function": {
        **ADD["function"],
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
TOOLS: list[dict[str, Any]] = [DEMO_WEATHER, DEMO_ADD]


@pytest.fixture(scope="module")
def demo(backend: str, demo_model: Path) -> Iterator[Engine]:
    spec = spec_of(name="demo", backend=backend, path=str(demo_model), context=1024, parallel=16, threads=1)
    engine = registry.engine_of(backend)(spec, lambda _: None)
    yield engine
    engine.close()


def chat(number: int, text: str, temperature: float, *, thinking: bool = False, tools=(), **fields: object) -> Generate:
    prompt = ChatPrompt(
        messages=[{"role": "user", "content": text}],
        tools=list(tools),
        template_kwargs={"enable_thinking": thinking},
    )
    sampling = Sampling(temperature=temperature, seed=number)
    return Generate(id=f"job-{number}", prompt=prompt, sampling=sampling, **fields)  # type: ignore[arg-type]


def batches(engine: Engine, jobs: list[Generate]) -> list[Outcome]:
    size = engine.ready().parallel
    groups = [jobs[i : i + size] for i in range(0, len(jobs), size)]
    return [outcome for group in groups for outcome in run(engine, group)]


def test_every_answer_under_a_schema_validates(demo: Engine, backend: str, full_counts: bool) -> None:
    """All when full counts are wanted, else every schema, question and temperature, the slower backend's less often."""
    cases = list(itertools.product(SCHEMAS.values(), PROMPTS, TEMPERATURES))
    assert len(cases) >= 300
    if not full_counts:
        cases = cases[:: 3 if backend == "gguf" else 7]
        assert len({str(schema) for schema, _, _ in cases}) == len(SCHEMAS)
        assert {(text, temperature) for _, text, temperature in cases} == set(itertools.product(PROMPTS, TEMPERATURES))
    jobs = [
        chat(i, text, temperature, constraint=JsonSchema(checked(schema, "s").text), max_tokens=400)
        for i, (schema, text, temperature) in enumerate(cases)
    ]
    ended = 0
    for outcome, (schema, _, _) in zip(batches(demo, jobs), cases, strict=True):
        assert not isinstance(outcome.end, Failed), outcome.end
        if outcome.reason() == "stop":
            ended += 1
            jsonschema.validate(json.loads(outcome.text()), schema)
    assert ended >= 0.9 * len(cases)


def test_reasoning_is_free_and_what_follows_it_validates(demo: Engine) -> None:
    schema = SCHEMAS["flat"]
    form = JsonSchema(checked(schema, "s").text)
    jobs = [
        chat(i, text, t, thinking=True, constraint=form)
        for i, (text, t) in enumerate(itertools.product(PROMPTS[:2], (0.0, 1.0, 1.5)))
    ]
    for outcome in batches(demo, jobs):
        reasoning, mark, answer = outcome.text().partition("</think>")
        assert reasoning.startswith(("<think>\nI", "<think>\nThe"))
        assert mark
        assert outcome.reason() == "stop"
        jsonschema.validate(json.loads(answer), schema)
        assert 0 < outcome.finished.reasoning_tokens < outcome.finished.completion_tokens


@pytest.mark.parametrize("budget", [0, 3])
def test_a_budget_closes_the_reasoning(demo: Engine, budget: int) -> None:
    (free, bounded) = (
        run(demo, [chat(1, "What is 3 plus 4?", 0.0, thinking=True, reasoning_budget=limit)])[0]
        for limit in (None, budget)
    )
    assert free.finished.reasoning_tokens > budget + 4
    assert budget < bounded.finished.reasoning_tokens <= budget + 3
    assert "</think>" in bounded.text()


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("required", [True, False])
def test_every_call_parses_and_validates(
    demo: Engine, backend: str, required: bool, parallel: bool, full_counts: bool
) -> None:
    """Every question at every temperature; asked more than once where it costs little, or all is wanted."""
    n_times = 7 if full_counts else 3 if backend == "gguf" else 1
    cases = list(itertools.product([*PROMPTS[:3], "Add 5 and 6.", "Hello!"], TEMPERATURES, range(n_times)))
    calls = ToolCalls([function(tool) for tool in TOOLS], required=required, parallel=parallel)
    jobs = [
        chat(i, text, temperature, tools=TOOLS, constraint=calls, max_tokens=300)
        for i, (text, temperature, _) in enumerate(cases)
    ]
    made = 0
    for outcome in batches(demo, jobs):
        begun = check_calls(outcome)
        made += begun
        assert begun or not required or outcome.reason() == "length"
        assert begun <= 1 or parallel
    assert made >= (0.9 if required else 0.4) * len(cases)


def check_calls(outcome: Outcome) -> int:
    """The calls of an answer that were finished, each validated."""
    assert not isinstance(outcome.end, Failed), outcome.end
    ids = iter(f"id{i}" for i in range(1000))
    reader = named("hermes").read(TOOLS, new_id=lambda: next(ids))
    pieces = [*reader.feed(outcome.text()), *reader.flush(cut=False)]
    begun = [piece for piece in pieces if isinstance(piece, CallBegins)]
    if outcome.reason() == "length":
        return 0
    assert outcome.reason() == ("tool_calls" if begun else "stop")
    parameters = {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS}
    for call in begun:
        arguments = "".join(p.text for p in pieces if isinstance(p, CallArguments) and p.number == call.number)
        jsonschema.validate(json.loads(arguments), parameters[call.name])
    return len(begun)


def test_everything_at_once(demo: Engine) -> None:
    """Penalties, bias, top_k, several choices, log-probabilities of the raw distribution, and ends that are ignored."""
    form = JsonSchema(checked(SCHEMAS["flat"], "s").text)
    sampling = Sampling(1.0, 0.9, 40, 0.01, 1.3, 0.5, 0.5, seed=3, logit_bias={5: 2.0})
    job = chat(1, PROMPTS[0], 1.0, constraint=form, n=3, logprobs=2, ignore_eos=True, min_tokens=4, max_tokens=300)
    (outcome,) = run(demo, [type(job)(**{**{f: getattr(job, f) for f in job.__struct_fields__}, "sampling": sampling})])
    for index in range(3):
        jsonschema.validate(json.loads(outcome.text(index)), SCHEMAS["flat"])
        assert outcome.reason(index) == "stop"
    assert any(present(entry.logprob) < -3 for entry in outcome.logprobs())
    assert all(len(entry.top) == 2 for entry in outcome.logprobs())


def test_an_answer_that_is_cut_says_so(demo: Engine) -> None:
    form = JsonSchema(checked(SCHEMAS["pydantic"], "s").text)
    (outcome,) = run(demo, [chat(1, PROMPTS[0], 0.0, constraint=form, max_tokens=5)])
    assert outcome.reason() == "length"
    assert outcome.finished.completion_tokens == 5
