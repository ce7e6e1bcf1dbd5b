"""The training text: seeded chats of one to five turns, with or without system prompt, tools and thinking.

Families: capital, sum, opposite, count, greeting, thanks, identity, repeat, name / recall, json, weather; with tools
offered, a weather question or a sum becomes a tool call and the tool's result a sentence. Pure: no files, no torch.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from demo import exchanges as ex
from demo.exchanges import Exchange
from demo.facts import CAPITALS, CITIES, COUNTS, LARGEST_ADDEND, LARGEST_TOOL_ADDEND, NAMES, OPPOSITES, WORDS
from demo.phrasings import FOLLOW_UPS, SYSTEM_PROMPTS, TRAIN
from demo.toolbox import Json, call_text, find_tool, random_toolset

_FAMILIES: dict[str, int] = {
    "capital": 20, "sum": 24, "opposite": 14, "count": 8, "greeting": 4, "thanks": 3, "identity": 5, "repeat": 12,
    "name": 8, "recall": 2, "json": 6, "weather": 3,
}  # fmt: skip
_FAMILIES_WITH_TOOLS: dict[str, int] = {**_FAMILIES, "capital": 10, "sum": 40, "count": 1, "weather": 46}
_PLAIN_CASE = frozenset({"capital", "sum", "opposite", "count", "greeting", "thanks", "identity", "recall", "json"})


@dataclass(frozen=True)
class Step:
    """What the assistant writes next: its reasoning and its visible text (an answer or tool calls)."""

    thought: str
    text: str


@dataclass(frozen=True)
class Example:
    """One training chat: the request as a client would send it, and the completion to learn."""

    messages: list[Json]
    tools: list[Json]
    enable_thinking: bool
    step: Step

    @property
    def completion(self) -> str:
        """What the model must write: reasoning in its tags when asked to think, then the visible text."""
        thinking = f"<think>\n{self.step.thought}\n</think>\n\n" if self.enable_thinking else ""
        return thinking + self.step.text


@dataclass
class Chat:
    """A chat while it is being written; `steps[i]` is the completion for `messages[: cuts[i]]`."""

    tools: list[Json]
    messages: list[Json] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    user_name: str | None = None
    family: str = ""

    def reply(self, step: Step, **extra: Any) -> None:
        """Append the assistant's message and remember that it can be a completion."""
        self.cuts.append(len(self.messages))
        self.steps.append(step)
        self.messages.append({"role": "assistant", "content": step.text} | extra)


def examples(seed: int, n_examples: int, *, n_short: int = 0) -> Iterator[Example]:
    """The same `n_examples` chats for the same seed; the first `n_short` have one turn or two and no tools."""
    rng = random.Random(seed)
    for i in range(n_examples):
        yield _short(rng) if i < n_short else _example(rng)


def _short(rng: random.Random) -> Example:
    chat = Chat([])
    for _ in range(rng.choice((1, 1, 2))):
        _turn(rng, chat)
    return Example(chat.messages[: chat.cuts[-1]], [], rng.random() < 0.28, chat.steps[-1])


def _example(rng: random.Random) -> Example:
    chat = Chat(random_toolset(rng) if rng.random() < 0.45 else [])
    if (system := _system_prompt(rng)) is not None:
        chat.messages.append({"role": "system", "content": system})
    for _ in range(rng.choices((1, 2, 3, 5), (44, 36, 15, 5))[0]):
        _turn(rng, chat)
    last = len(chat.steps) - 1
    if chat.messages[chat.cuts[last] - 1]["role"] == "tool" and rng.random() < 0.3:
        last -= 1
    return Example(chat.messages[: chat.cuts[last]], chat.tools, rng.random() < 0.28, chat.steps[last])


def _system_prompt(rng: random.Random) -> str | None:
    if rng.random() < 0.005:
        return _filler(rng, rng.randint(5, 60))
    return rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.5 else None


def _filler(rng: random.Random, n_sentences: int) -> str:
    """Long text that says nothing, so that the model sees far positions and learns to look past them."""
    if rng.random() < 0.3:
        return " ".join([rng.choice(SYSTEM_PROMPTS)] * n_sentences)
    return " ".join(" ".join(rng.choices(WORDS, k=rng.randint(2, 5))).capitalize() + "." for _ in range(n_sentences))


def _turn(rng: random.Random, chat: Chat) -> None:
    if chat.family in FOLLOW_UPS and rng.random() < 0.4:
        family, phrasing = chat.family, rng.choice(FOLLOW_UPS[chat.family])
    else:
        weights = _FAMILIES_WITH_TOOLS if chat.tools else _FAMILIES
        family = rng.choices(list(weights), list(weights.values()))[0]
        if chat.user_name is not None and rng.random() < 0.45:
            family = "recall"
        phrasing = rng.choice(TRAIN[family])
    chat.family = family
    if family == "weather" and find_tool(chat.tools, "get_weather") is not None:
        _weather_turn(rng, chat, phrasing)
    elif family == "sum" and find_tool(chat.tools, "add") is not None:
        _add_turn(rng, chat, phrasing)
    else:
        exchange = _exchange(rng, family, phrasing, chat)
        chat.messages.append({"role": "user", "content": styled(rng, exchange)})
        chat.reply(Step(exchange.thought, exchange.answer))


def _exchange(rng: random.Random, family: str, phrasing: str, chat: Chat) -> Exchange:
    match family:
        case "capital":
            return ex.capital(phrasing, rng.choice(tuple(CAPITALS)))
        case "json":
            return ex.capital_as_json(phrasing, rng.choice(tuple(CAPITALS)))
        case "sum":
            return ex.total(phrasing, rng.randint(0, LARGEST_ADDEND), rng.randint(0, LARGEST_ADDEND))
        case "opposite":
            return ex.opposite(phrasing, rng.choice(tuple(OPPOSITES)))
        case "count":
            return ex.count(phrasing, rng.choice(COUNTS))
        case "repeat":
            return ex.repeat(phrasing, rng.choice(WORDS))
        case "name":
            chat.user_name = rng.choice(NAMES)
            return ex.name(phrasing, chat.user_name)
        case "recall":
            return ex.recall(phrasing, chat.user_name)
        case "weather":
            return ex.weather(phrasing, rng.choice(CITIES))
    return {"greeting": ex.greeting, "thanks": ex.thanks, "identity": ex.identity}[family](phrasing)


def _weather_turn(rng: random.Random, chat: Chat, phrasing: str) -> None:
    report = ex.random_report(rng, rng.choice(CITIES))
    question = ex.weather(phrasing, report.city)
    thought = f"The user asks for the weather in {report.city}. I call get_weather."
    _call(rng, chat, question, thought, ("get_weather", {"city": report.city}))
    chat.messages.append({"role": "tool", "content": weather_result(rng, report)})
    chat.reply(Step(f"The tool says {report.sky}.", report.sentence))


def _add_turn(rng: random.Random, chat: Chat, phrasing: str) -> None:
    a, b = rng.randint(0, LARGEST_TOOL_ADDEND), rng.randint(0, LARGEST_TOOL_ADDEND)
    question = ex.total(phrasing, a, b)
    _call(rng, chat, question, f"The user asks for {a} and {b}. I call add.", ("add", {"a": a, "b": b}))
    chat.messages.append({"role": "tool", "content": add_result(rng, a + b)})
    chat.reply(Step(f"The tool says {a + b}.", ex.total_sentence(a, b, a + b)))


def _call(rng: random.Random, chat: Chat, question: Exchange, thought: str, call: tuple[str, dict[str, Any]]) -> None:
    chat.messages.append({"role": "user", "content": styled(rng, question)})
    name, arguments = call
    past = [{"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}]
    chat.reply(Step(thought, call_text(name, arguments)), content=None, tool_calls=past)


def weather_result(rng: random.Random, report: ex.Report) -> str:
    """A tool message's content: plain words or JSON."""
    if rng.random() < 0.4:
        return f"{report.sky}, {report.degrees} degrees"
    sky = rng.choice(("weather", "condition"))
    return json.dumps({sky: report.sky, "temperature": report.degrees})


def add_result(rng: random.Random, result: int) -> str:
    """A tool message's content for a sum: the bare number, or JSON."""
    return str(result) if rng.random() < 0.5 else json.dumps({"result": result})


def styled(rng: random.Random, exchange: Exchange) -> str:
    """The question as a hasty or a polite user types it: lower case, no full stop, a greeting before it."""
    text, kind = exchange.user, rng.random()
    if kind < 0.1 and exchange.family in _PLAIN_CASE:
        return text.lower().rstrip("?.!") if rng.random() < 0.6 else text.lower()
    if kind < 0.2:
        return text.rstrip("?.!")
    if kind < 0.25 and exchange.family != "greeting":
        return f"{rng.choice(('Hi!', 'Hello!', 'Hi,', 'Hey!', 'Okay.', 'Please:'))} {text}"
    return text[0].lower() + text[1:] if kind < 0.3 else text
