"""Limits per minute, and the usage book."""

import asyncio
import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.accounts.account import Account, KeyLimits, Spent, duration
from server.accounts.book import Accounts, UsageBook
from server.accounts.bucket import Bucket
from server.errors import ApiError


def test_a_bucket_refills_evenly_and_never_above_its_limit():
    bucket = Bucket(60, now=0.0)
    bucket.take(60, now=0.0)
    assert bucket.wait_s(0.0) == pytest.approx(1.0)
    assert bucket.left(30.0) == pytest.approx(30.0)
    assert bucket.left(1000.0) == 60


def test_what_is_overdrawn_refills_first():
    bucket = Bucket(60, now=0.0)
    bucket.take(90, now=0.0)
    assert bucket.wait_s(0.0) == pytest.approx(31.0)
    bucket.take(-90, now=0.0)
    assert bucket.left(0.0) == 60


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30)), max_size=40), st.integers(1, 500))
def test_over_any_time_no_more_passes_than_the_limit_and_one_bucket(steps, per_minute):
    bucket, now, passed = Bucket(per_minute, now=0.0), 0.0, 0.0
    for amount, waited_s in steps:
        now += waited_s
        if bucket.left(now) >= amount:
            bucket.take(amount, now)
            passed += amount
    assert passed <= per_minute * (1 + now / 60) + 1e-6


def test_tokens_are_reserved_until_their_job_tells_what_it_took():
    account = Account("a", KeyLimits(tokens_per_minute=100), now=0.0)
    account.admit(0.0)
    reserved = account.reserve(prompt_bytes=40, max_tokens=1000, now=0.0)
    assert reserved == 100  # a minute's at most: a larger request waits for no larger bucket
    with pytest.raises(ApiError, match=r"100 tokens per minute \(TPM\)") as caught:
        account.admit(0.0)
    assert caught.value.status == 429
    assert caught.value.headers == {"retry-after": "1", "retry-after-ms": "600"}
    account.settle(reserved, Spent("m", 10, 0, 5), now=0.0)
    account.admit(0.0)
    assert account.headers(0.0)["x-ratelimit-remaining-tokens"] == "85"


def test_what_no_limit_holds_up_takes_nothing_from_one():
    account = Account("a", KeyLimits(tokens_per_minute=100), now=0.0)
    account.count(Spent("m", 10_000, 0, 5_000))
    account.admit(0.0)
    assert account.headers(0.0)["x-ratelimit-remaining-tokens"] == "100"


def test_other_limits_forget_nothing_that_was_used():
    accounts = Accounts((), clock=lambda: 0.0)
    first = accounts.of("a", KeyLimits(requests_per_minute=2))
    first.admit(0.0)
    first.admit(0.0)
    again = accounts.of("a", KeyLimits(requests_per_minute=3))
    assert again is first
    again.admit(0.0)
    with pytest.raises(ApiError, match="3 requests per minute"):
        again.admit(0.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.0195, "20ms"), (1.46, "1.5s"), (59.99, "60s"), (360, "6m0s")]
)
def test_a_duration_reads_as_openai_writes_it(seconds, text):
    assert duration(seconds) == text


async def test_two_servers_add_to_one_book_and_days_are_kept_apart(tmp_path):
    days = ["2026-11-28"]
    books = [UsageBook(tmp_path / "usage.sqlite", today=lambda: days[-1]) for _ in range(2)]
    for day in ("2026-11-28", "2026-11-29"):
        days.append(day)
        for book in books:
            book.spent("anna", Spent("chat", 10, 4, 5))
            await book.close()
    rows = await books[0].rows(2)
    assert [(row.day, row.used.jobs, row.used.prompt_tokens) for row in rows] == [
        ("2026-11-28", 2, 20),
        ("2026-11-29", 2, 20),
    ]
    assert [row.day for row in await books[1].rows(1)] == ["2026-11-29"]


async def test_a_book_that_cannot_be_written_is_counted_on_and_said_once(tmp_path, caplog):
    path = tmp_path / "usage.sqlite"
    path.mkdir()
    book = UsageBook(path, today=lambda: "2026-11-29")
    for _ in range(2):
        book.spent("anna", Spent("chat", 10, 0, 5))
        assert (await book.rows(1))[0].used.prompt_tokens
    assert (await book.rows(1))[0].used.jobs == 2
    assert caplog.text.count("usage_unwritten") == 1
    path.rmdir()
    await book.close()
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT jobs, completion_tokens FROM used").fetchall() == [(2, 10)]


async def test_what_is_counted_while_the_book_is_written_is_not_lost(tmp_path):
    book = UsageBook(tmp_path / "usage.sqlite", today=lambda: "2026-11-29")
    for _ in range(20):
        book.spent("anna", Spent("chat", 1, 0, 1))
        reading = asyncio.create_task(book.rows(1))
        await asyncio.sleep(0)
        book.spent("anna", Spent("chat", 1, 0, 1))
        await reading
    assert (await book.rows(1))[0].used.jobs == 40
