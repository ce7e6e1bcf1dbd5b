"""What the model that sees is shown and asked: a shape of one colour on a background of another. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

SIDE: Final = 48
"""Pixels of a picture's sides."""
COLOURS: Final = {
    "red": (220, 30, 30),
    "green": (30, 180, 50),
    "blue": (40, 60, 220),
    "yellow": (235, 215, 40),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "orange": (240, 140, 20),
    "purple": (140, 40, 170),
}
SHAPES: Final = ("square", "circle", "triangle")
_NOISE: Final = 4.0
"""Standard deviation of a picture's brightness, of 255."""


@dataclass(frozen=True)
class Look:
    """A picture, a question about it, and the one right answer."""

    family: str
    """`colour`, `shape`, `scene` or `background`."""
    pixels: NDArray[np.uint8]
    """`(SIDE, SIDE, 3) uint8`, red first."""
    question: str
    answer: str


def draw(rng: random.Random, shape: str, colour: str, background: str) -> NDArray[np.uint8]:
    """`(SIDE, SIDE, 3) uint8`; size, place and brightness are chance."""
    canvas: NDArray[np.float32] = np.empty((SIDE, SIDE, 3), np.float32)
    canvas[:] = COLOURS[background]
    radius = rng.randint(10, 18)
    x0, y0 = (rng.randint(radius + 1, SIDE - radius - 1) for _ in range(2))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    if shape == "square":
        inside = (abs(x - x0) <= radius * 0.85) & (abs(y - y0) <= radius * 0.85)
    elif shape == "circle":
        inside = (x - x0) ** 2 + (y - y0) ** 2 <= radius**2
    else:
        inside = (y >= y0 - radius) & (y <= y0 + radius) & (abs(x - x0) <= (y - y0 + radius) / 2)
    canvas[inside] = COLOURS[colour]
    canvas += rng.gauss(0, _NOISE)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def look(rng: random.Random) -> Look:
    """One picture and one question, by chance."""
    shape, colour = rng.choice(SHAPES), rng.choice(list(COLOURS))
    background = rng.choice([other for other in COLOURS if other != colour])
    pixels = draw(rng, shape, colour, background)
    family = rng.choice(["colour", "shape", "scene", "background"])
    questions = {
        "colour": (
            f"What colour is the {shape}?",
            f"What color is the {shape}?",
            f"Which colour has the {shape}?",
        ),
        "shape": ("What shape is this?", "Which shape do you see?", "What shape is in the picture?"),
        "scene": ("What is in the picture?", "Describe the image.", "What do you see?"),
        "background": ("What colour is the background?", "What color is the background?"),
    }
    answers = {
        "colour": f"The {shape} is {colour}.",
        "shape": f"It is a {shape}.",
        "scene": f"A {colour} {shape} on {background}.",
        "background": f"The background is {background}.",
    }
    return Look(family, pixels, rng.choice(questions[family]), answers[family])


def exam(*, colours: int = 23, backgrounds: int = 18, seed: int = 99) -> Iterator[Look]:
    """So many questions of the two families that the model has learnt; shapes are beyond it."""
    rng, wanted = random.Random(seed), {"colour": colours, "background": backgrounds}
    while any(wanted.values()):
        one = look(rng)
        if wanted.get(one.family, 0):
            wanted[one.family] -= 1
            yield one
