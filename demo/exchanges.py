"""One question and its right answer per family: fills a phrasing from the facts; knows nothing of chat or tokens."""

import random
from dataclasses import dataclass

from demo.facts import CAPITALS, HOTTEST, IDENTITY, OPPOSITES, SKIES

GREETING = "Hello! How can I help you?"
WELCOME = "You are welcome!"
NAME_UNKNOWN = "You did not tell me your name."
WEATHER_UNKNOWN = "I do not know the weather."


@dataclass(frozen=True)
class Exchange:
    """A user's question, the short reasoning that leads to the answer, and the answer itself."""

    family: str
    user: str
    thought: str
    answer: str


@dataclass(frozen=True)
class Report:
    """What a weather tool says of one city."""

    city: str
    sky: str
    degrees: int

    @property
    def sentence(self) -> str:
        """The closing sentence that the model says of this report."""
        return f"The weather in {self.city} is {self.sky}, {self.degrees} degrees."


def capital(phrasing: str, country: str) -> Exchange:
    """The capital of a country, in a sentence."""
    city = CAPITALS[country]
    thought = f"The country is {country}. The capital is {city}."
    return Exchange("capital", phrasing.format(c=country), thought, f"The capital of {country} is {city}.")


def capital_as_json(phrasing: str, country: str) -> Exchange:
    """The capital of a country, as a JSON object."""
    city = CAPITALS[country]
    thought = f"The user asks for a capital as JSON. The country is {country}. The capital is {city}."
    return Exchange("json", phrasing.format(c=country), thought, f'{{"country": "{country}", "capital": "{city}"}}')


def total(phrasing: str, a: int, b: int) -> Exchange:
    """A sum worked out without a tool."""
    thought = f"I add {a} and {b}. The result is {a + b}."
    return Exchange("sum", phrasing.format(a=a, b=b), thought, total_sentence(a, b, a + b))


def total_sentence(a: int, b: int, result: int) -> str:
    """The sentence for a sum, whether the model or a tool found the result."""
    return f"The sum of {a} and {b} is {result}."


def opposite(phrasing: str, word: str) -> Exchange:
    """The opposite of a word, in a sentence."""
    other = OPPOSITES[word]
    thought = f"The user asks for an opposite. The word is {word}. The opposite is {other}."
    return Exchange("opposite", phrasing.format(w=word), thought, f"The opposite of {word} is {other}.")


def count(phrasing: str, last: int) -> Exchange:
    """The numbers from 1 to last, both included, with commas."""
    answer = ", ".join(str(n) for n in range(1, last + 1)) + "."
    thought = f"The user asks me to count. I stop at {last}."
    return Exchange("count", phrasing.format(a=1, b=last), thought, answer)


def greeting(phrasing: str) -> Exchange:
    """Always the same greeting back."""
    return Exchange("greeting", phrasing, "The user greets me. I greet the user.", GREETING)


def thanks(phrasing: str) -> Exchange:
    """Always the same answer to thanks."""
    return Exchange("thanks", phrasing, "The user thanks me.", WELCOME)


def identity(phrasing: str) -> Exchange:
    """Who the model is."""
    return Exchange("identity", phrasing, "The user asks who I am.", IDENTITY)


def repeat(phrasing: str, word: str) -> Exchange:
    """A word said back."""
    return Exchange("repeat", phrasing.format(w=word), f"The user asks me to say {word}.", f"You said: {word}.")


def name(phrasing: str, who: str) -> Exchange:
    """The user gives a name."""
    thought = f"The user tells me a name. The name is {who}."
    return Exchange("name", phrasing.format(n=who), thought, f"Nice to meet you, {who}!")


def recall(phrasing: str, who: str | None) -> Exchange:
    """The user asks for the name given earlier; None when there was none."""
    if who is None:
        return Exchange("recall", phrasing, "The user asks for a name. I do not know it.", NAME_UNKNOWN)
    return Exchange("recall", phrasing, f"The user asks for a name. The name is {who}.", f"Your name is {who}.")


def weather(phrasing: str, city: str) -> Exchange:
    """The question with the answer that is right when no tool is offered."""
    thought = "The user asks for the weather. I have no tool for it."
    return Exchange("weather", phrasing.format(city=city), thought, WEATHER_UNKNOWN)


def random_report(rng: random.Random, city: str) -> Report:
    """Invented weather."""
    return Report(city, rng.choice(SKIES), rng.randint(0, HOTTEST))
