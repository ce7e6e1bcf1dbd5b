"""Templates rendered beside a worker: what runs in C is ended, and everything else is as it was."""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator

import pytest

from backends.engine import JobError
from backends.prompts import renderer
from backends.prompts.chat_template import ChatTemplate
from backends.prompts.renderer import Renderer

USER = [{"role": "user", "content": "hi"}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
SHARED = (
    "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(40) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}"
)
ENDLESS_IN_C = {
    "round": "{{ (7) | round(-100000000) }}",
    "json": SHARED + "{{ ns.x | tojson | length }}",
    "equal": SHARED + "{{ ns.x == ns.y }}",
    "pprint": SHARED + "{{ ns.x | pprint | length }}",
}


@pytest.fixture(scope="module")
def beside() -> Iterator[Renderer]:
    keep_out = os.open(os.devnull, os.O_RDONLY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # other tests may have left threads; a worker has none yet
        made = renderer.fork_beside(keep_out=keep_out)
    os.close(keep_out)
    yield made
    made.close()


Make = Callable[[str], ChatTemplate]


@pytest.fixture
def template(beside: Renderer) -> Make:
    def make(source: str) -> ChatTemplate:
        with renderer.rendering_beside(beside):
            return ChatTemplate(source, special_tokens={})

    return make


def test_it_renders_as_in_the_process_itself(template: Make) -> None:
    assert template(PLAIN).render(USER) == ChatTemplate(PLAIN, special_tokens={}).render(USER) == "user: hi\n"


@pytest.mark.parametrize("kind", ENDLESS_IN_C)
def test_what_computes_in_c_is_ended_and_not_tried_again(kind: str, template: Make) -> None:
    bad, good, began = template(ENDLESS_IN_C[kind]), template(PLAIN), time.monotonic()

    with pytest.raises(JobError, match=r"longer than 2 s over a short conversation.*hint|memory") as first:
        bad.render(USER)
    took_s = time.monotonic() - began

    assert took_s < 10
    assert good.render(USER) == "user: hi\n"
    if "longer than" in first.value.message:
        began = time.monotonic()
        with pytest.raises(JobError, match="longer than 2 s"):
            bad.render(USER)
        assert time.monotonic() - began < took_s / 2


def test_a_long_conversation_is_not_held_against_the_template(template: Make) -> None:
    slow = template("{% if messages[0].content | length > 9 %}{{ (7) | round(-100000000) }}{% endif %}ok")

    with pytest.raises(JobError, match=r"longer than 2 s$"):
        slow.render([{"role": "user", "content": "x" * renderer.LARGE_BYTES}])

    assert slow.render(USER) == "ok"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{% for %}", "is broken: .*"),
        ("{{ a" + "}" * 300_000, "is broken: it has 300004 characters"),
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{{ 'x'.ljust(3000000000) }}", "more than 256 MiB of memory$"),
        ("{{ nothing.at.all }}", "failed: 'nothing' is undefined"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "failed: .*recursion"),
        ("{{ '\\ud800' }}", r"\?|failed|broken"),
    ],
)
def test_what_is_wrong_is_told_in_words(source: str, told: str, template: Make) -> None:
    try:
        text = template(source).render(USER)
    except JobError as error:
        text = error.message
        assert "Error" not in text

    assert re.search(told, text)


def test_a_conversation_that_is_no_text_is_a_sentence(template: Make) -> None:
    with pytest.raises(JobError, match="holds what is no text"):
        template(PLAIN).render([{"role": "user", "content": "\ud800"}])
