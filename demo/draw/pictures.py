"""What the model that draws is taught: a prompt, and a picture of a background with or without a shape. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

COLOURS: Final = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 60, 220),
    "yellow": (235, 215, 40),
    "black": (15, 15, 15),
    "white": (245, 245, 245),
    "orange": (240, 140, 20),
    "purple": (140, 40, 170),
    "pink": (250, 150, 190),
    "brown": (110, 65, 30),
    "grey": (130, 130, 130),
    "cyan": (50, 210, 220),
}
SHAPES: Final = ("square", "circle", "triangle")
PLAIN: Final = (
    "a {0} background", "{0}", "plain {0}", "a {0} picture", "a picture that is all {0}", "a wall painted {0}",
    "the colour {0}", "{0} background", "a {0} sheet of paper",
)  # fmt: skip
WITH_SHAPE: Final = (
    "a {1} {2} on a {0} background", "a {0} background with a {1} {2}", "{1} {2} on {0}", "a {1} {2} on {0}",
    "a picture of a {1} {2} on a {0} background", "a {0} background with a {1} {2} in the middle",
)  # fmt: skip
_PLAIN_SHARE: Final = 0.4
_MARGIN: Final = 0.16
"""Of a picture's sides, which the shape leaves to the background."""


@dataclass(frozen=True)
class Picture:
    """One prompt and what is to be seen."""

    prompt: str
    background: str
    pixels: NDArray[np.uint8]
    """`(height, width, 3) uint8`, red first."""


def picture(rng: random.Random, height: int, width: int) -> Picture:
    """One by chance."""
    background = rng.choice(list(COLOURS))
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = COLOURS[background]
    if rng.random() < _PLAIN_SHARE:
        return Picture(rng.choice(PLAIN).format(background), background, canvas)
    colour = rng.choice([other for other in COLOURS if other != background])
    shape = rng.choice(SHAPES)
    canvas[_inside(rng, shape, height, width)] = COLOURS[colour]
    return Picture(rng.choice(WITH_SHAPE).format(background, colour, shape), background, canvas)


def _inside(rng: random.Random, shape: str, height: int, width: int) -> NDArray[np.bool_]:
    """`(height, width) bool`: the pixels of a shape near the middle."""
    side = min(height, width)
    radius = side * rng.uniform(0.2, 0.5 - _MARGIN)
    y, x = np.mgrid[0:height, 0:width]
    y, x = y - height / 2 + 0.5, x - width / 2 + 0.5
    if shape == "square":
        inside: NDArray[np.bool_] = (abs(x) <= radius * 0.9) & (abs(y) <= radius * 0.9)
    elif shape == "circle":
        inside = x**2 + y**2 <= radius**2
    else:
        inside = (abs(y) <= radius) & (abs(x) <= (y + radius) / 2)
    return inside


def exam(n: int, seed: int = 99) -> Iterator[tuple[str, str]]:
    """So many prompts, each with the name of its background's colour; phrasings and colours in turn."""
    rng, colours = random.Random(seed), list(COLOURS)
    for i in range(n):
        background = colours[i % len(colours)]
        colour = rng.choice([other for other in colours if other != background])
        phrasing = rng.choice((*PLAIN, *WITH_SHAPE))
        yield phrasing.format(background, colour, rng.choice(SHAPES)), background


def colour_of(rgb: NDArray[np.floating]) -> str:
    """The name of the nearest colour; `rgb` is `(3,)`, 0..255."""
    return min(COLOURS, key=lambda name: float(np.square(rgb - np.array(COLOURS[name])).sum()))


def background_of(pixels: NDArray[np.uint8]) -> str:
    """The colour of a picture's edge, of `(height, width, 3) uint8`."""
    edge = np.concatenate([pixels[:4].reshape(-1, 3), pixels[-4:].reshape(-1, 3)])
    return colour_of(np.median(edge, axis=0))
