"""Estimates: computed, told by a dry load, measured; and what is kept of them between runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from backends.border.dry import DrySizes
from backends.gguf.info import HeaderInfo, Tensor
from backends.messages import EncoderPlan
from backends.messages.plans import ALL_LAYERS
from backends.plan import Amount
from backends.registry import estimate
from server.memory.estimator import Estimator
from server.memory.files import FileFacts
from server.memory.learned import Learned, data_folder
from tests.specs import plan_of

MIB = 2**20
FILE = (100 * MIB, 1, 2)
PLAN = plan_of(4096, 2, "f16", 0, "cpu")
HEADER = HeaderInfo(
    architecture="llama",
    file_bytes=FILE[0],
    metadata={
        "llama.block_count": 2,
        "llama.context_length": 32768,
        "llama.embedding_length": 512,
        "llama.feed_forward_length": 1024,
        "llama.attention.head_count": 8,
        "llama.attention.head_count_kv": 2,
    },
    array_lengths={"tokenizer.ggml.tokens": 1000},
    longest_token_bytes=8,
    tensors=(Tensor("token_embd.weight", (512, 1000), "F16", 90 * MIB),),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "onecard" / "learned.json"


def estimator(file: Path, *, engine: str = "e1") -> Estimator:
    return Estimator(Learned(file), engine=engine)


def facts(file: tuple[int, int, int] = FILE, header: HeaderInfo = HEADER) -> FileFacts:
    return FileFacts(Path("m.gguf"), file, header)


def host(n_bytes: int) -> Amount:
    return Amount(host=n_bytes)


def dry(*, cache: int, compute: int) -> DrySizes:
    return DrySizes(weights=90 * MIB, cache=cache, compute={"CPU": compute})


def test_unseen_file_is_estimated_from_its_header(file: Path) -> None:
    told = estimator(file).estimate(facts(), PLAN)
    assert told.source == "header"
    assert told.footprint == estimate(HEADER, PLAN)


def test_dry_load_tells_compute_and_leaves_the_exact_cache_of_the_arithmetic(file: Path) -> None:
    shop = estimator(file)
    exact = estimate(HEADER, PLAN).host.kv
    shop.note_dry(facts(), PLAN, dry(cache=exact + 5000, compute=3 * MIB))

    told = shop.estimate(facts(), PLAN)

    assert told.source == "dry"
    assert told.footprint.host.kv == exact
    assert 3 * MIB <= told.footprint.host.compute < 3.1 * MIB


def test_dry_load_is_believed_where_the_arithmetic_is_wrong(file: Path) -> None:
    shop = estimator(file)
    exact = estimate(HEADER, PLAN).host.kv
    shop.note_dry(facts(), PLAN, dry(cache=2 * exact, compute=3 * MIB))
    assert shop.estimate(facts(), PLAN).footprint.host.kv >= 2 * exact


def test_refused_dry_load_is_not_asked_again_and_changes_no_estimate(file: Path) -> None:
    shop = estimator(file)
    shop.note_dry(facts(), PLAN, None)
    assert shop.has_dry(facts(), PLAN)
    assert shop.estimate(facts(), PLAN).source == "header"


@pytest.mark.parametrize("missed", [-9 * MIB, 40 * MIB])
def test_second_prediction_of_a_configuration_is_what_the_first_load_took(file: Path, missed: int) -> None:
    shop = estimator(file)
    measured = shop.estimate(facts(), PLAN).footprint.amount.host + missed

    shop.learn(facts(), PLAN, host(measured))

    told = shop.estimate(facts(), PLAN)
    assert (told.source, told.footprint.amount.host) == ("measured", measured)


def test_load_that_ran_out_of_memory_raises_the_estimate_twice_as_much_each_time_until_measured(file: Path) -> None:
    shop = estimator(file)
    usual = shop.estimate(facts(), PLAN).footprint.amount.host
    first, second = (shop.doubt(facts(), PLAN) for _ in range(2))
    assert second == 2 * first > 0

    told = shop.estimate(facts(), PLAN)
    assert told.within(host(2**40)).amount.host == usual + second
    assert told.within(host(usual + 5)).amount.host == usual + 5, "a doubt must not make a model impossible"
    assert told.within(host(usual - 5)).amount.host == usual
    shop.learned.save()
    assert estimator(file).estimate(facts(), PLAN).doubt == host(second)

    shop.learn(facts(), PLAN, host(usual + MIB))
    assert shop.estimate(facts(), PLAN).within(host(2**40)).amount.host == usual + MIB
    assert shop.doubt(facts(), PLAN) == 0, "what was measured stands"


def test_other_configurations_of_the_file_share_what_its_process_takes(file: Path) -> None:
    shop = estimator(file)
    other = msgspec.structs.replace(PLAN, context=8192)
    before = shop.estimate(facts(), other).footprint.amount.host
    measured = shop.estimate(facts(), PLAN).footprint.amount.host - 5 * MIB
    shop.learn(facts(), PLAN, host(measured))

    assert shop.estimate(facts(), other).footprint.amount.host == before - 5 * MIB


def test_other_files_start_from_the_median_of_this_machine(file: Path) -> None:
    shop = estimator(file)
    usual = estimate(HEADER, PLAN)
    for i, missed in enumerate((10 * MIB, 12 * MIB, 300 * MIB)):
        shop.learn(facts((FILE[0], i, i)), PLAN, host(usual.host.total_bytes + missed))

    assert shop.estimate(facts((1, 2, 3), HEADER), PLAN).footprint.host.runtime == usual.host.runtime + 12 * MIB


def test_a_process_that_gives_vectors_tells_nothing_about_one_that_gives_text(file: Path) -> None:
    shop = estimator(file)
    pools = replace(HEADER, metadata={**HEADER.metadata, "llama.pooling_type": 1})
    plan = EncoderPlan(4096, 0)
    shop.learn(facts((1, 1, 1), pools), plan, host(estimate(pools, plan).host.total_bytes + 9 * MIB))

    assert shop.estimate(facts((1, 2, 3), HEADER), PLAN).footprint == estimate(HEADER, PLAN)
    assert (
        shop.estimate(facts((1, 2, 4), pools), plan).footprint.host.runtime
        == estimate(pools, plan).host.runtime + 9 * MIB
    )


def test_what_is_learned_survives_the_process_but_not_the_engine_or_the_file(file: Path) -> None:
    shop = estimator(file)
    measured = shop.estimate(facts(), PLAN).footprint.amount.host + MIB
    shop.learn(facts(), PLAN, host(measured))
    shop.learned.save()

    assert estimator(file).estimate(facts(), PLAN).source == "measured"
    assert estimator(file, engine="e2").estimate(facts(), PLAN).source == "header"
    assert estimator(file).estimate(facts((FILE[0], 99, FILE[2])), PLAN).source == "header"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"version": 99, "measured": {}}',
        b'{"version": 1, "measured": 7, "machine": []}',
        b"\xff\xfe\x00",
    ],
)
def test_corrupt_file_counts_as_empty_and_is_replaced(file: Path, content: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(content)
    shop = estimator(file)
    assert shop.estimate(facts(), PLAN).source == "header"
    shop.learn(facts(), PLAN, host(2**40))
    shop.learned.save()
    assert estimator(file).estimate(facts(), PLAN).footprint.amount.host == 2**40


def test_values_of_the_wrong_kind_are_not_believed(file: Path) -> None:
    shop = estimator(file)
    shop.learn(facts(), PLAN, host(2**40))
    shop.note_dry(facts(), PLAN, dry(cache=1, compute=1))
    shop.learned.save()
    nonsense = json.loads(file.read_text(), parse_int=lambda text: "many" if text != "1" else 1)
    file.write_text(json.dumps({**nonsense, "version": 1}))

    assert estimator(file).estimate(facts(), PLAN).footprint == estimate(HEADER, PLAN)


def test_folder_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "onecard").write_text("a file where the folder should be")
    learned = Learned(tmp_path / "onecard" / "learned.json")
    learned.put("dry", "k", {})
    learned.save()
    assert learned.get("dry", "k") == {}


def test_two_processes_keep_each_others_figures(file: Path) -> None:
    one, two = Learned(file), Learned(file)
    one.put("dry", "a", 1)
    one.save()
    two.put("dry", "b", 2)
    two.save()
    again = Learned(file)
    assert (again.get("dry", "a"), again.get("dry", "b")) == (1, 2)


def test_the_oldest_is_forgotten_when_there_is_too_much(file: Path) -> None:
    learned = Learned(file)
    for i in range(1100):
        learned.put("dry", str(i), i)
    assert learned.get("dry", "0") is None
    assert learned.get("dry", "1099") == 1099


def test_data_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert data_folder() == tmp_path / "onecard"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/does/not/count")
    assert data_folder().is_absolute()


def test_on_a_card_each_memory_is_told_measured_and_doubted_by_itself(file: Path) -> None:
    shop, plan = estimator(file), plan_of(4096, 2, "f16", ALL_LAYERS, "cuda")
    computed = estimate(HEADER, plan)
    compute = {"CUDA0": 3 * MIB, "CUDA_Host": 5 * MIB, "CPU": MIB}
    shop.note_dry(facts(), plan, DrySizes(weights=90 * MIB, cache=computed.device.kv, compute=compute))
    dry_one = shop.estimate(facts(), plan).footprint
    assert (dry_one.device.weights, dry_one.device.kv) == (computed.device.weights, computed.device.kv)
    assert 3 * MIB <= dry_one.device.compute < 3.1 * MIB
    assert 6 * MIB <= dry_one.host.compute < 6.1 * MIB

    shop.learn(facts(), plan, Amount(host=dry_one.host.total_bytes + 7 * MIB))
    again = shop.estimate(facts(), plan)
    assert again.source == "dry", "the card's memory was not measured"
    assert again.footprint.amount == dry_one.amount + Amount(host=7 * MIB)
    assert shop.doubt(facts(), plan) > 0
    assert shop.estimate(facts(), plan).doubt.host == 0

    shop.learn(facts(), plan, again.footprint.amount + Amount(device=MIB))
    assert shop.estimate(facts(), plan).source == "measured"
    assert shop.estimate(facts(), plan).footprint.amount == again.footprint.amount + Amount(device=MIB)
    other = shop.estimate(facts((1, 2, 3)), plan).footprint
    assert other.host.runtime == computed.host.runtime + 7 * MIB, "this machine's median"
