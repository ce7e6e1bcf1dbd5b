"""The router decides by what each node holds, how long it takes there, and what it would cost others."""

from __future__ import annotations

from server.cluster.facts import Ask, HeldModel, NodeReport, Weights
from server.cluster.router import Router

GIB = 2**30
READY = HeldModel("ready", parallel=2, needs_bytes=5 * GIB, load_s=3.0)
GONE = HeldModel("unloaded", parallel=2, needs_bytes=5 * GIB, load_s=3.0)


def node(name, *, at=0.0, free=0, life="1", **models):
    return NodeReport(name, life, at, free * GIB, models)


def router(*reports, weights=None):
    made = Router(weights or Weights())
    for report in reports:
        made.report(report)
    return made


def sent(made, ask, now=0.0, **how):
    choice = made.choose(ask, now, **how)
    made.begin(ask, choice.node, now)
    return choice


def test_a_conversation_stays_with_the_node_that_holds_it():
    made = router(node("a", chat=READY), node("b", chat=READY))
    talks = [Ask("chat", f"talk{i}", 400) for i in range(10)]
    homes = {}
    for talk in talks:
        homes[talk.head] = sent(made, talk).node
        made.end(talk, homes[talk.head], took_s=2.0)
    assert set(homes.values()) == {"a", "b"} or len(set(homes.values())) == 1
    for talk in reversed(talks):
        choice = sent(made, talk)
        assert (choice.node, choice.reason) == (homes[talk.head], "head")
        made.end(talk, choice.node, took_s=2.0)


def test_a_turn_stays_although_the_last_report_is_older_than_the_answer_before():
    loading = HeldModel("loading", waiting=1, needs_bytes=5 * GIB, load_s=3.0)
    made = router(node("a", free=11, chat=GONE), node("b", free=11, chat=GONE))
    talk = Ask("chat", "talk", 40)
    home = sent(made, talk).node
    other = "b" if home == "a" else "a"
    made.report(node(home, free=6, chat=loading))
    made.report(node(other, free=6, chat=READY))
    made.end(talk, home, took_s=0.1)
    assert made.choose(talk, 4.0).node == home


def test_a_long_prompt_stays_longer_than_a_short_one():
    queue = HeldModel("ready", parallel=1, running=1, waiting=1)
    made = router(node("a", chat=queue), node("b", chat=HeldModel("ready")), weights=Weights(job_s=3.0))
    for n_tokens in (100, 30_000):
        made.begin(Ask("chat", f"t{n_tokens}", n_tokens), "a", 0.0)
        made.end(Ask("chat"), "a", took_s=None)
    assert made.choose(Ask("chat", "t100", 100), 0.0).node == "b"
    assert made.choose(Ask("chat", "t30000", 30_000), 0.0).node == "a"


def test_a_node_that_holds_the_model_goes_before_one_with_room_for_it():
    made = router(node("a", free=11, chat=GONE), node("b", chat=READY))
    assert made.choose(Ask("chat"), 0.0).reason == "resident"
    assert made.choose(Ask("chat"), 0.0).node == "b"


def test_a_model_that_only_some_nodes_know_goes_to_those():
    busy = HeldModel("ready", parallel=1, running=9, waiting=40)
    made = router(node("a", free=11, other=READY), node("b", own=busy, other=READY))
    assert made.choose(Ask("own"), 0.0).node == "b"
    assert made.choose(Ask("own"), 0.0, without=frozenset("b")) is None
    many = router(*(node(f"n{place}", free=11, other=READY) for place in range(60)))
    for name in ("n3", "n41"):
        many.report(node(name, free=11, other=READY, own=busy))
        assert many.choose(Ask("own"), 0.0).node == name
        many.report(node(name, free=11, other=READY))
    assert not many.knows("own")


def test_a_long_queue_makes_another_node_load():
    made = router(node("a", free=11, chat=GONE), node("b", chat=READY))
    chosen = [sent(made, Ask("chat")).node for _ in range(12)]
    assert chosen[0] == "b"
    assert "a" in chosen


def test_requests_behind_a_load_under_way_go_to_the_same_node():
    roomy = HeldModel("unloaded", parallel=8, needs_bytes=5 * GIB, load_s=3.0)
    made = router(node("a", free=11, chat=roomy), node("b", free=11, chat=roomy))
    first = sent(made, Ask("chat"), 0.0)
    assert first.reason == "load"
    assert sent(made, Ask("chat"), 0.1).node == first.node
    assert made.choose(Ask("chat"), 2.5).wait_s < first.wait_s


def test_a_load_goes_where_nothing_in_use_has_to_leave():
    used = HeldModel("ready", parallel=2, needs_bytes=8 * GIB, load_s=5.0)
    made = router(node("a", at=20, free=1, other=used, chat=GONE), node("b", at=20, free=1, idle=used, chat=GONE))
    for second in range(20):
        made.begin(Ask("other"), "a", float(second))
        made.end(Ask("other"), "a", took_s=2.0)
    assert made.choose(Ask("chat"), 20.0).node == "b"


def test_a_pinned_model_does_not_count_as_room():
    pinned = HeldModel("ready", parallel=2, needs_bytes=8 * GIB, load_s=5.0, pinned=True)
    idle = HeldModel("ready", parallel=2, needs_bytes=8 * GIB, load_s=5.0)
    made = router(node("a", free=1, p=pinned, chat=GONE), node("b", free=1, i=idle, chat=GONE))
    assert made.choose(Ask("chat"), 0.0).node == "b"


def test_loads_that_wait_for_each_other_are_spread():
    small = HeldModel("unloaded", parallel=2, needs_bytes=GIB, load_s=3.0)
    names = [f"m{i}" for i in range(6)]
    made = router(*(node(n, free=11, **dict.fromkeys(names, small)) for n in "abc"))
    chosen = [sent(made, Ask(name)).node for name in names]
    assert sorted(chosen.count(n) for n in "abc") == [2, 2, 2]


def test_a_load_that_failed_is_not_expected_any_more():
    made = router(node("a", free=11, chat=GONE))
    ask = Ask("chat")
    before_s = made.choose(ask, 0.0).wait_s
    made.begin(ask, "a", 0.0)
    assert made.choose(ask, 2.9).wait_s < before_s
    made.end(ask, "a", took_s=None)
    made.report(node("a", at=3.0, free=11, chat=GONE))
    assert made.choose(ask, 3.0).wait_s == before_s


def test_a_node_that_failed_gets_nothing_for_a_while_or_until_its_next_life():
    made = router(node("a", chat=READY), node("b", free=11, chat=GONE))
    made.failed("a", 0.0)
    assert made.choose(Ask("chat"), 1.0).node == "b"
    assert made.choose(Ask("chat"), 2.0).node == "a"
    made.failed("a", 2.0)
    made.report(node("a", at=2.1, life="2", chat=READY))
    assert made.choose(Ask("chat"), 2.2).node == "a"


def test_a_node_that_is_silent_is_the_last_resort_and_one_tried_already_gets_nothing():
    made = router(node("a", at=0.0, chat=READY), node("b", at=14.0, free=11, chat=GONE))
    assert made.choose(Ask("chat"), 15.1).node == "b"
    assert made.choose(Ask("chat"), 15.1, without=frozenset("b")).node == "a"
    assert made.choose(Ask("chat"), 15.1, without=frozenset("ab")) is None
    assert made.choose(Ask("chat"), 14.0, without=frozenset("a")).node == "b"


def test_a_node_that_left_is_forgotten_with_all_it_held():
    made = router(node("a", chat=READY), node("b", chat=READY))
    talk = Ask("chat", "talk", 100)
    home = sent(made, talk).node
    made.forget(home)
    assert sent(made, talk, 0.1).node == ({"a", "b"} - {home}).pop()
    made.end(talk, home, took_s=1.0)


def test_edges_agree_where_a_model_is_loaded_and_a_node_that_leaves_moves_no_other():
    names = [f"n{i}" for i in range(40)]
    models = [f"m{i}" for i in range(60)]
    free = dict.fromkeys(models, HeldModel("unloaded", needs_bytes=GIB))

    def first_choices(present):
        made = router(*(node(name, free=11, **free) for name in present))
        return {model: made.choose(Ask(model), 0.0).node for model in models}

    whole, again = first_choices(names), first_choices(list(reversed(names)))
    assert whole == again
    assert len(set(whole.values())) > 20
    less = first_choices([name for name in names if name != "n7"])
    assert {model for model in models if less[model] != whole[model]} == {m for m in models if whole[m] == "n7"}


def test_a_node_that_comes_back_still_has_the_requests_that_it_had():
    """Given a node that was silent for long, when it tells again, then what runs there is counted, and once."""
    talk = Ask("chat", "talk")
    made = router(node("a", chat=READY), node("b", chat=READY))
    for _ in range(3):
        made.begin(talk, "a", 0.0)
    made.forget("a")
    made.end(talk, "a", took_s=None)

    made.report(node("a", at=90.0, chat=READY))
    made.begin(talk, "a", 90.0)
    made.end(talk, "a", took_s=None)

    assert made.nodes["a"].n_in_flight == 2
    made.forget("a")
    for _ in range(2):
        made.end(talk, "a", took_s=1.0)
    assert "a" not in made.nodes
    assert made._forgotten == {}


def test_models_that_no_node_holds_any_more_take_no_memory():
    made = router(node("a", chat=READY))
    for n in range(50):
        made.report(node("a", at=float(n), chat=READY, **{f"ft{n}": READY}))
    made.report(node("a", at=99.0, chat=READY))
    holders = made._holders
    assert (list(holders._counts), list(holders._in_order)) == (["chat"], ["chat"])
    assert set(made._models) == {"chat"}
