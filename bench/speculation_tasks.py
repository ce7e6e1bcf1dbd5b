"""What is asked in `python -m bench speculation`: texts that repeat their prompt, and texts that do not.

A small model has to be able to do them, so each answer is begun for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_FILE: Final = """class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError("amount must be positive")
        self.balance += amount
        self.history.append(("deposit", amount))

    def withdraw(self, amount):
        if amount > self.balance:
            raise ValueError("not enough money")
        self.balance -= amount
        self.history.append(("withdraw", amount))

    def report(self):
        for kind, amount in self.history:
            print(self.owner, kind, amount)
"""
_PEOPLE: Final = (
    ("Maria Fernandez", "Lisbon", "carpenter"),
    ("John Appleseed", "Fort Wayne", "gardener"),
    ("Akira Tanaka", "Yokohama", "conductor"),
    ("Olga Petrova", "Novosibirsk", "physics teacher"),
    ("Peter Lindqvist", "Gothenburg", "shipbuilder"),
    ("Amina Diallo", "Dakar", "photographer"),
)
_NOTES: Final = (
    "The harbour of Westport was founded in 1843 by the brothers Hale. In 1901 a storm destroyed the northern pier, "
    "and the town built a stone breakwater of 600 metres. Today the harbour has 240 berths, a fish market and a school "
    "for sailors. The lighthouse at its entrance is 31 metres high and was lit by oil until 1934."
)


def _chat(asked: str, begun: str = "") -> str:
    return f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n{begun}"


def _people(number: int) -> str:
    ordered = _PEOPLE[number % len(_PEOPLE) :] + _PEOPLE[: number % len(_PEOPLE)]
    told = "\n".join(f"name: {name}, city: {city}, job: {job}" for name, city, job in ordered)
    (name, city, job), (other, town, _) = ordered[:2]
    begun = f'[{{"name": "{name}", "city": "{city}", "job": "{job}"}},\n {{"name": "{other}", "city": "{town}",'
    return _chat(f"Write these people as a JSON array of objects:\n{told}", begun)


def _edit(number: int) -> str:
    owner = ("owner", "holder", "client", "member")[number % 4]
    file = _FILE.replace("owner", owner)
    renamed = file.replace("Account", "Wallet")
    return _chat(
        f"Rename the class Account to Wallet in this file:\n```python\n{file}```", f"```python\n{renamed[:230]}"
    )


_TOPICS: Final = ("a dog and a lighthouse", "the first day at a new school", "a lost key", "rain in the desert")
_FUNCTIONS: Final = ("is_prime(n)", "fibonacci(n)", "reverse_words(text)", "count_vowels(text)")
TASKS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "edit": tuple(_edit(number) for number in range(8)),
        "extract": tuple(_people(number) for number in range(8)),
        "summary": tuple(_chat(f"Sum up in three sentences:\n{_NOTES} Note {n}.") for n in range(8)),
        "code": tuple(f"def {_FUNCTIONS[n % 4]}:\n" for n in range(8)),
        "chat": tuple(_chat(f"Tell me a story about {_TOPICS[n % 4]}, number {n}.") for n in range(8)),
    }
)
"""Prompts by task; each with another number asks for something else."""
