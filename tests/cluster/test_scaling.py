"""The number of nodes follows what waits, and the start of a stream is held until a token is in it."""

from __future__ import annotations

import pytest

from server.cluster.asks import answer_id, wanted
from server.cluster.federation import federated
from server.cluster.scaling import nodes_wanted
from server.cluster.stream import Held

SAYS = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'


@pytest.mark.parametrize(
    ("waiting", "now", "wanted_now"),
    [([3, 4], 2, 2), ([8, 9], 2, 3), ([8, 9], 3, 3), ([40, 40], 2, 10), ([40, 40], 10, 10), ([0, 1], 2, 2), ([], 2, 2)],
)
def test_full_queues_ask_for_nodes(waiting, now, wanted_now):
    """While nodes start, the same queue asks for no more of them."""
    assert nodes_wanted(waiting, [1.0] * len(waiting), now) == wanted_now


@pytest.mark.parametrize(
    ("busy", "wanted_now"), [([0, 0, 0], 2), ([0.5, 0.5, 0], 2), ([0.5, 0.5, 0.25], 3), ([1, 1, 1], 3)]
)
def test_a_node_leaves_where_the_others_have_room_for_its_work(busy, wanted_now):
    assert nodes_wanted([0] * 3, busy, 3) == wanted_now
    assert nodes_wanted([0, 0, 0.2], busy, 3) == 3


def test_what_has_no_token_is_held_and_signs_of_life_pass():
    held = Held()
    assert held.take(b": loading 40%\n\n" + ROLE[:20]) == b": loading 40%\n\n"
    assert held.take(ROLE[20:]) == b""
    assert not held.begun
    assert held.take(b": keep-alive\n\n") == b": keep-alive\n\n"
    assert held.take(SAYS + b"data: [D") == ROLE + SAYS
    assert held.begun
    assert held.take(b"ONE]\n\n") == b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "before",
    [
        b"event: message_start\ndata: {}\n\nevent: content_block_start\ndata: {}\n\n",
        b"event: response.created\ndata: {}\n\nevent: response.output_item.added\ndata: {}\n\n",
        ROLE,
    ],
)
def test_each_surface_s_opening_is_no_token(before):
    held = Held()
    assert held.take(before) == b""
    assert held.finish() == before


def test_turns_of_a_conversation_have_one_head_and_others_another():
    def body(*said, model=b"chat"):
        told = b",".join(b'{"role":"%b","content":"%b"}' % one for one in said)
        return b'{"model":"%b","messages":[%b]}' % (model, told)

    system, first = (b"system", b"be kind"), (b"user", b"hello")
    turn = wanted(body(system, first), default_model="")
    later = wanted(body(system, first, (b"assistant", b"hi"), (b"user", b"more")), default_model="")
    assert turn.ask.head == later.ask.head
    assert later.ask.prompt_tokens > turn.ask.prompt_tokens
    others = [body(first), body(system, (b"user", b"other")), body(system, first, model=b"b")]
    assert turn.ask.head not in {wanted(other, default_model="").ask.head for other in others}
    keyed = [
        wanted(b'{"model":"m","input":"%b","prompt_cache_key":"k"}' % text, default_model="") for text in (b"a", b"b")
    ]
    assert keyed[0].ask.head == keyed[1].ask.head


def test_a_form_and_a_body_that_is_none_have_a_model():
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--\r\n'
    assert wanted(form, default_model="first").ask.model == "whisper"
    assert wanted(b"{broken", default_model="first").ask.model == "first"
    assert wanted(b'{"model": 3}', default_model="first").ask.model == "first"
    earlier = wanted(b'{"thread":{"previous_message_id":"msg_1"}}', default_model="first").goes_on_from
    assert earlier == "msg_1"
    assert answer_id(b'event: response.created\ndata: {"response":{"id":"resp_8cd","object"') == "resp_8cd"
    assert answer_id(b'{"id":"chatcmpl-1"}') is None


def test_a_body_of_any_depth_is_read():
    for opening, end in ((b"[", b"]"), (b'{"a":', b"}")):
        for depth in range(900, 1100):
            nested = opening * depth + b"1" + end * depth
            assert wanted(b'{"model":"m","messages":%b}' % nested, default_model="m").ask.model == "m"


def test_one_page_of_metrics_describes_each_family_once():
    page = '# HELP x_total What.\n# TYPE x_total counter\nx_total{model="m"} 1.0\n# TYPE y gauge\ny 2\n'
    told = federated({'a"b': page, "c": page})
    assert told.count("# TYPE x_total counter") == 1
    assert 'x_total{node="a\\"b",model="m"} 1.0\nx_total{node="c",model="m"} 1.0\n' in told
    assert 'y{node="c"} 2' in told
