"""Where there is speech, the windows of it, and the way back to the recording's time; no model computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from backends.speech.kind import Pauses
from backends.speech.windows import WINDOW_S, Window, Windows

RATE = 16_000


def syllables(seconds: float, *, loud: float = 0.3) -> np.ndarray:
    """Something that is loud and quiet as speech is: 150 ms of tone, 100 ms of nothing."""
    at = np.arange(round(seconds * RATE)) / RATE
    return (loud * 32_767 * np.sin(2 * np.pi * 180 * at) * ((at % 0.25) < 0.15)).astype(np.int16)


def still(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), dtype=np.int16)


def noise(seconds: float, loud: float = 0.02) -> np.ndarray:
    return np.random.default_rng(1).normal(0, loud * 32_767, round(seconds * RATE)).astype(np.int16)


def hum(seconds: float) -> np.ndarray:
    return (6_000 * np.sin(2 * np.pi * 50 * np.arange(round(seconds * RATE)) / RATE)).astype(np.int16)


def windows(samples: np.ndarray, *, piece_s: float = 10, pauses: Pauses | None = None) -> list[Window]:
    def pieces() -> Iterator[np.ndarray]:
        size = round(piece_s * RATE)
        for first in range(0, samples.size, size):
            yield samples[first : first + size]

    return [one for one in Windows(pauses or Pauses()).of(pieces()) if one is not None]


@pytest.mark.parametrize(
    "samples", [still(20), noise(20), noise(20, 0.2), hum(20), np.concatenate([still(10), noise(10, 0.001)])]
)
def test_what_is_steady_is_no_speech(samples: np.ndarray) -> None:
    assert windows(samples) == []


@pytest.mark.parametrize("beside", [still, lambda s: noise(s, 0.003)])
@pytest.mark.parametrize("piece_s", [1.3, 10, 60])
def test_speech_is_found_where_it_is(beside, piece_s: float) -> None:
    """Given 3 s of speech in 20 s, then one window holds it with what is kept around it, whatever the pieces."""
    begin_s, end_s = 8.0, 11.0
    samples = beside(20)
    samples[round(begin_s * RATE) : round(end_s * RATE)] = syllables(end_s - begin_s)
    (window,) = windows(samples, piece_s=piece_s)
    assert window.time_s(0) == pytest.approx(begin_s - 0.3, abs=0.1)
    assert window.time_s(window.duration_s, end=True) == pytest.approx(end_s + 0.2, abs=0.2)


def test_pauses_are_left_out_and_times_are_those_of_the_recording() -> None:
    samples = np.concatenate([syllables(3), still(5), syllables(3), still(0.5), syllables(2)])
    (window,) = windows(samples)
    assert window.duration_s == pytest.approx(9.0, abs=0.5)
    assert window.time_s(window.parts[1][0] + 1, end=True) == pytest.approx(8.7, abs=0.2)
    times = [window.time_s(at_s) for at_s in np.linspace(0, window.duration_s, 200)]
    assert times == sorted(times)


def test_no_window_is_longer_than_a_model_hears_and_nothing_is_lost() -> None:
    """Given two minutes without a pause that counts, then windows lie side by side."""
    found = windows(np.concatenate([still(2), syllables(120), still(2)]))
    assert len(found) > 4
    assert all(one.duration_s <= WINDOW_S for one in found)
    for one, other in itertools.pairwise(found):
        assert one.time_s(one.duration_s, end=True) == pytest.approx(other.time_s(0), abs=0.05)


def test_the_rest_of_a_window_keeps_its_times() -> None:
    (window,) = windows(np.concatenate([syllables(3), still(5), syllables(3)]))
    rest = window.rest(4.0)
    assert rest.duration_s == pytest.approx(window.duration_s - 4, abs=0.01)
    assert rest.time_s(1.0) == pytest.approx(window.time_s(5.0), abs=0.01)


def test_words_of_hours_of_silence_hold_no_memory() -> None:
    """Given a word and then an hour of nothing, then its window comes at once and no samples are kept for it."""
    maker = Windows(Pauses())

    def pieces() -> Iterator[np.ndarray]:
        yield np.concatenate([syllables(2), still(8)])
        yield from (still(10) for _ in range(360))

    found = [place for place, one in enumerate(maker.of(pieces())) if one is not None]
    assert len(found) == 1
    assert found[0] <= 3


@pytest.mark.parametrize(("threshold", "heard"), [(0.1, True), (1.0, False)])
def test_a_higher_threshold_hears_less(threshold: float, heard: bool) -> None:
    """Given a voice that is 10 dB above the room."""
    room = noise(20, 0.02)
    at = np.arange(3 * RATE) / RATE
    voice = 0.07 * 32_767 * np.sin(2 * np.pi * 200 * at) * ((at % 0.25) < 0.15)
    room[8 * RATE : 11 * RATE] += voice.astype(np.int16)
    assert bool(windows(room, pauses=Pauses(threshold=threshold))) is heard
