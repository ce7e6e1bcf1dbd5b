"""Batches over HTTP with OpenAI's SDK, as its guide shows them; the engine is a fake."""

from __future__ import annotations

import json

import openai
import pytest

from tests.batches.conftest import CHAT, Night, chat, config_of
from tests.e2e.server import until


def test_openais_example_runs_unchanged_and_lines_come_in_the_order_of_the_file(night: Night):
    before = night.counted("onecard_batch_requests_total")
    texts = [("fake", "b"), ("gpt-4o-mini", "a"), ("none", "c"), ("fake", "!refuse no")]
    begun = night.begin(texts, metadata={"description": "nightly eval job"})
    assert (begun.status, begun.object) in (("validating", "batch"), ("in_progress", "batch"))

    done = night.ended(begun)

    assert done.status == "completed"
    assert done.metadata == {"description": "nightly eval job"}
    assert done.request_counts is not None
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (4, 2, 2)
    output, errors = night.lines(done.output_file_id), night.lines(done.error_file_id)
    assert [one["custom_id"] for one in output] == ["id-0", "id-1"]
    assert output[0]["response"]["body"]["choices"][0]["message"]["content"] == "echo: b"
    assert output[0]["error"] is None
    assert [(one["custom_id"], one["response"]["status_code"]) for one in errors] == [("id-2", 404), ("id-3", 400)]
    assert done.usage is not None
    assert done.usage.output_tokens == sum(one["response"]["body"]["usage"]["completion_tokens"] for one in output)
    after = night.counted("onecard_batch_requests_total")
    assert {name: after[name] - before.get(name, 0) for name in ('{outcome="ok"}', '{outcome="failed"}')} == {
        '{outcome="ok"}': 2,
        '{outcome="failed"}': 2,
    }
    client = night.client()
    assert next(iter(client.batches.list(limit=1))).id == begun.id
    assert {one.purpose for one in client.files.list()} >= {"batch", "batch_output"}


def test_a_file_that_is_wrong_fails_its_batch_with_the_lines(night: Night):
    client = night.client()
    file = client.files.create(file=("in.jsonl", b'{"custom_id": 1}\n{'), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")
    failed = night.ended(batch)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert failed.errors.data is not None
    assert [one.line for one in failed.errors.data] == [1, 2]
    other = client.files.create(file=("in.jsonl", b"{}"), purpose="fine-tune")
    for wrong, told in (
        ({"input_file_id": "file-none"}, "No such File object: file-none"),
        ({"input_file_id": other.id}, "was uploaded for 'fine-tune'"),
        ({"endpoint": "/v1/models"}, "Invalid 'endpoint': a batch asks one of /v1/chat/completions"),
        ({"completion_window": "0h"}, "Invalid 'completion_window': hours or days are expected"),
        ({"completion_window": "31d"}, "30 days at most"),
        ({"metadata": {"a": 1}}, "metadata"),
    ):
        good = {"input_file_id": file.id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
        with pytest.raises(openai.APIStatusError, match=told):
            client.batches.create(**{**good, **wrong})  # type: ignore[arg-type]


def test_a_cancelled_batch_keeps_what_was_answered_and_tells_the_rest(night: Night):
    begun = night.begin([("fake", " quick"), *[("fake", "!slow 100 1000")] * 5])
    client = night.client()
    until(lambda: client.batches.retrieve(begun.id).request_counts.completed == 1, 20)  # type: ignore[union-attr]
    assert client.batches.cancel(begun.id).status == "cancelling"
    done = night.ended(begun)
    assert done.status == "cancelled"
    assert done.cancelled_at is not None
    assert [one["custom_id"] for one in night.lines(done.output_file_id)] == ["id-0"]
    assert {one["error"]["code"] for one in night.lines(done.error_file_id)} == {"batch_cancelled"}
    assert client.batches.cancel(begun.id).status == "cancelled"
    until(lambda: not night.model("fake")["busy"], 5)


def test_a_request_of_a_client_goes_first_where_lines_have_taken_every_place(night: Night):
    begun = night.begin([("single", "!slow 20 200")])
    until(lambda: night.model("single")["busy"] == 1, 20)
    before = night.counted("onecard_batch_requests_total").get('{outcome="given_back"}', 0)

    answer = night.server.post(CHAT, chat("single", "hello"), headers={"x-api-key": "sk-plain"})

    assert answer.status == 200
    assert night.client().batches.retrieve(begun.id).status == "in_progress"
    assert night.counted("onecard_batch_requests_total")['{outcome="given_back"}'] == before + 1
    done = night.ended(begun)
    (line,) = night.lines(done.output_file_id)
    assert line["response"]["body"]["choices"][0]["message"]["content"].split()[-1] == "199"


@pytest.mark.parametrize("wish", [{"priority": 5}, {"keep_alive": 60}], ids=lambda wish: next(iter(wish)))
def test_a_wish_about_the_queue_or_the_model_is_refused_by_name(night: Night, wish: dict[str, int]):
    client = night.client("sk-boss")
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": chat("fake", "x") | wish}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    begun = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    until(lambda: client.batches.retrieve(begun.id).status == "completed", 20)
    told = json.loads(client.files.content(str(client.batches.retrieve(begun.id).error_file_id)).text)["response"]
    assert told["status_code"] == 400
    assert (told["body"]["error"]["param"], told["body"]["error"]["code"]) == (*wish, "unsupported_parameter")


def test_a_request_for_another_model_goes_first_too(night: Night):
    begun = night.begin([("single", "!slow 20 100")])
    until(lambda: night.model("single")["busy"] == 1, 20)
    stream = night.client().chat.completions.create(
        model="fake", messages=[{"role": "user", "content": "!slow 50 20"}], stream=True
    )
    next(iter(stream))
    assert not night.model("single")["busy"]
    stream.close()
    assert night.ended(begun).status == "completed"


def test_lines_count_as_their_keys_usage_and_only_its_owner_sees_them(night: Night):
    anna, ben, boss = (night.client(key) for key in ("sk-anna", "sk-ben", "sk-boss"))
    begun = night.begin([("fake", str(n)) for n in range(9)] + [("org/small:Q8", "x")], anna)
    until(lambda: boss.batches.retrieve(begun.id).status == "completed", 20)
    done = anna.batches.retrieve(begun.id)
    assert done.request_counts is not None
    assert (done.request_counts.completed, done.request_counts.failed) == (9, 1)  # no limit per minute is in the way
    with pytest.raises(openai.NotFoundError):
        ben.batches.retrieve(begun.id)
    with pytest.raises(openai.NotFoundError):
        ben.files.content(done.output_file_id or "")
    assert list(ben.batches.list()) == list(ben.files.list()) == []
    (used,) = night.server.get("/v1/usage", headers={"x-api-key": "sk-anna"}).json()["data"]
    assert (used["key"], used["jobs"]) == ("anna", 9)


def test_files_are_listed_page_by_page_read_and_deleted(night: Night):
    client = night.client()
    made = [client.files.create(file=(f"{n}.txt", b"x" * n), purpose="user_data") for n in (1, 2, 3)]
    assert [one.id for one in client.files.list(limit=2)][:3] == [one.id for one in reversed(made)]
    assert [one.id for one in client.files.list(order="asc", after=made[0].id)] == [one.id for one in made[1:]]
    assert {one.purpose for one in client.files.list(purpose="user_data")} == {"user_data"}
    assert client.files.content(made[2].id).content == b"xxx"
    assert client.files.retrieve(made[0].id).filename == "1.txt"
    assert client.files.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(made[0].id)
    short = client.files.create(
        file=("s", b"s"), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert short.expires_at == short.created_at + 3600
    endless = {"purpose": "user_data", "expires_after": {"anchor": "created_at", "seconds": "9" * 5000}}
    for wrong in ({"purpose": "other"}, {"purpose": "batch", "extra_body": {"color": "red"}}, endless):
        with pytest.raises(openai.BadRequestError):
            client.files.create(file=("s", b"s"), **wrong)


def test_one_server_holds_the_folder_and_another_says_so(night: Night, canary_path):
    night.client().files.create(file=("a", b"a"), purpose="user_data")
    other = Night(config_of(canary_path), night.folder)
    plain = {"x-api-key": "sk-plain"}
    try:
        assert other.server.post(CHAT, chat("fake", "hi"), headers=plain).status == 200
        refused = other.server.get("/v1/files", headers=plain)
        assert (refused.status, refused.error["code"]) == (503, "files_elsewhere")
    finally:
        other.server.stop()


def test_a_batch_whose_file_is_gone_before_it_is_read_fails(night: Night):
    client = night.client()
    blocking = night.begin([("single", "!slow 20 100")])
    until(lambda: night.model("single")["busy"] == 1, 20)
    file = client.files.create(file=("in.jsonl", b"{}"), purpose="batch")
    path = next(night.folder.rglob(file.id))
    path.unlink()
    lost = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    failed = night.ended(lost)
    assert failed.status == "failed"
    assert failed.errors is not None
    assert [one.code for one in failed.errors.data or []] == ["file_not_found"]
    assert night.ended(blocking).status == "completed"


def test_a_file_that_cannot_be_kept_fails_its_batch_and_no_other(night: Night):
    client = night.client()
    line = {"custom_id": "\ud800", "method": "POST", "url": CHAT, "body": chat("fake", "hi")}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    wrong = client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    assert night.ended(wrong).status == "failed"
    assert night.ended(night.begin([("fake", "after it")])).status == "completed"


def test_what_lines_take_is_no_latency_of_clients_and_no_wish_of_theirs(night: Night):
    def ttfts() -> float:
        return night.counted("onecard_time_to_first_token_seconds_count").get('{model_name="single"}', 0)

    assert night.server.post(CHAT, chat("single", "hi"), headers={"x-api-key": "sk-plain"}).status == 200
    before = ttfts()
    assert before >= 1
    assert night.ended(night.begin([("single", "hello")])).status == "completed"
    assert ttfts() == before
