"""The demo's exam: questions with one right answer each, and how an answer is marked. Pure, for any engine.

Ask every `Case` greedily (temperature 0), give the text that came back to `score`. A server that parses tool calls
or reasoning can be marked too: put its tool calls back into text with `demo.toolbox.call_text`, leave reasoning out.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from demo import exchanges as ex
from demo.exchanges import Exchange
from demo.facts import (
    CAPITALS,
    CITIES,
    COUNTS,
    HOTTEST,
    LARGEST_ADDEND,
    LARGEST_TOOL_ADDEND,
    NAMES,
    OPPOSITES,
    SKIES,
    WORDS,
)
from demo.phrasings import FOLLOW_UPS, HELD_OUT, HELD_OUT_FOLLOW_UPS, TRAIN
from demo.toolbox import ADD, GET_WEATHER, Json, call_text

_SYSTEM: Json = {"role": "system", "content": "You are a helpful assistant."}
_TOOLS: list[Json] = [GET_WEATHER, ADD]
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)
_THINK = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True)
class Case:
    """A request and the text that is right for it; a tool call is expected in the model's own notation."""

    family: str
    messages: list[Json]
    expected: str
    tools: list[Json] = field(default_factory=list)
    enable_thinking: bool = False


@dataclass
class Exam:
    """Everything needed to make cases: chance, and which phrasings are in use."""

    rng: random.Random
    phrasings: dict[str, tuple[str, ...]]
    follow_ups: dict[str, tuple[str, ...]]

    def phrasing(self, family: str) -> str:
        """One way to ask, `{}` still unfilled."""
        return self.rng.choice(self.phrasings[family])

    def city(self) -> str:
        """A city to ask the weather of."""
        return self.rng.choice(CITIES)

    def country(self) -> str:
        """A country with a known capital."""
        return self.rng.choice(tuple(CAPITALS))

    def word(self) -> str:
        """A word with a known opposite."""
        return self.rng.choice(tuple(OPPOSITES))

    def number(self) -> int:
        """A number of the sums that the model learns by heart."""
        return self.rng.randint(0, LARGEST_ADDEND)


def cases(heldout: bool = True, *, n_per_family: int = 14, seed: int = 3) -> list[Case]:
    """The exam, the same for the same arguments; `heldout` asks in phrasings that training never saw."""
    sources = (HELD_OUT, HELD_OUT_FOLLOW_UPS) if heldout else (TRAIN, FOLLOW_UPS)
    exam = Exam(random.Random(seed), *sources)
    return [maker(exam) for maker in _MAKERS for _ in range(n_per_family)]


def score(case: Case, text: str) -> bool:
    """Whether the text is right: the same calls, or the same words once reasoning is left out."""
    if wanted := _CALL.findall(case.expected):
        return _parsed(_CALL.findall(text)) == _parsed(wanted)
    return _THINK.sub("", text, count=1).strip() == case.expected


def accuracy(results: Iterable[tuple[Case, str]]) -> dict[str, float]:
    """Share of right answers per family, and over everything under the name `overall`."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for case, text in results:
        for name in (case.family, "overall"):
            asked[name] += 1
            right[name] += score(case, text)
    return {name: right[name] / asked[name] for name in asked}


def _parsed(calls: list[str]) -> list[Json] | None:
    try:
        return [json.loads(call) for call in calls]
    except json.JSONDecodeError:
        return None


def _single(exam: Exam, exchange: Exchange) -> Case:
    system = [_SYSTEM] if exam.rng.random() < 0.5 else []
    return Case(exchange.family, [*system, _user(exchange.user)], exchange.answer)


def _user(text: str) -> Json:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Json:
    return {"role": "assistant", "content": text}


def _question(exam: Exam, family: str, phrasing: str) -> Exchange:
    match family:
        case "capital":
            return ex.capital(phrasing, exam.country())
        case "json":
            return ex.capital_as_json(phrasing, exam.country())
        case "sum":
            return ex.total(phrasing, exam.number(), exam.number())
        case "opposite":
            return ex.opposite(phrasing, exam.word())
        case "count":
            return ex.count(phrasing, exam.rng.choice(COUNTS))
        case "repeat":
            return ex.repeat(phrasing, exam.rng.choice(WORDS))
        case "name":
            return ex.name(phrasing, exam.rng.choice(NAMES))
        case "weather":
            return ex.weather(phrasing, exam.city())
    return {"greeting": ex.greeting, "thanks": ex.thanks, "identity": ex.identity}[family](phrasing)


def _plain(family: str) -> Callable[[Exam], Case]:
    return lambda exam: _single(exam, _question(exam, family, exam.phrasing(family)))


def _recall(exam: Exam) -> Case:
    who = exam.rng.choice(NAMES)
    told, asked = ex.name(exam.phrasing("name"), who), ex.recall(exam.phrasing("recall"), who)
    middle = _question(exam, "capital", TRAIN["capital"][0])
    between = [_user(middle.user), _assistant(middle.answer)] if exam.rng.random() < 0.4 else []
    messages = [_user(told.user), _assistant(told.answer), *between, _user(asked.user)]
    return Case("recall", messages, asked.answer)


def _follow_up(exam: Exam) -> Case:
    family = exam.rng.choice(("capital", "capital", "sum", "opposite"))
    before = _question(exam, family, TRAIN[family][0])
    after = _question(exam, family, exam.rng.choice(exam.follow_ups[family]))
    return Case("follow_up", [_user(before.user), _assistant(before.answer), _user(after.user)], after.answer)


def _thinking(exam: Exam) -> Case:
    family = exam.rng.choice(("capital", "sum"))
    exchange = _question(exam, family, exam.phrasing(family))
    return Case("thinking", [_user(exchange.user)], exchange.answer, enable_thinking=True)


def _tool_weather(exam: Exam) -> Case:
    city = exam.city()
    messages = [_user(exam.phrasing("weather").format(city=city))]
    return Case("tool_weather", messages, call_text("get_weather", {"city": city}), tools=_TOOLS)


def _tool_add(exam: Exam) -> Case:
    a, b = exam.rng.randint(0, LARGEST_TOOL_ADDEND), exam.rng.randint(0, LARGEST_TOOL_ADDEND)
    messages = [_user(exam.phrasing("sum").format(a=a, b=b))]
    return Case("tool_add", messages, call_text("add", {"a": a, "b": b}), tools=_TOOLS)


def _tool_answer(exam: Exam) -> Case:
    report = ex.Report(exam.city(), exam.rng.choice(SKIES), exam.rng.randint(0, HOTTEST))
    result = json.dumps({"condition": report.sky, "temperature": report.degrees})
    if exam.rng.random() < 0.5:
        result = f"{report.sky}, {report.degrees} degrees"
    call = {"name": "get_weather", "arguments": json.dumps({"city": report.city})}
    messages = [
        _user(exam.phrasing("weather").format(city=report.city)),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call_1", "content": result},
    ]
    return Case("tool_answer", messages, report.sentence, tools=_TOOLS)


def _tools_unneeded(exam: Exam) -> Case:
    family = exam.rng.choice(("capital", "opposite", "greeting", "identity", "repeat"))
    exchange = _question(exam, family, exam.phrasing(family))
    return Case("tools_unneeded", [_user(exchange.user)], exchange.answer, tools=_TOOLS)


_MAKERS: tuple[Callable[[Exam], Case], ...] = (
    *map(_plain, ("capital", "sum", "opposite", "count", "greeting", "thanks", "identity", "repeat", "name", "json")),
    _plain("weather"),
    _recall,
    _follow_up,
    _thinking,
    _tool_weather,
    _tool_add,
    _tool_answer,
    _tools_unneeded,
)  # fmt: skip
