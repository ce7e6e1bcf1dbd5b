"""`onecard fit`: the plan in bytes, without a server."""

import json

import pytest

from backends.plan import JOBS_AT_ONCE
from demo import HF_PATH
from tests.embeddings.models import minilm


@pytest.fixture(autouse=True)
def alone(environment):
    """No server answers, whatever runs on this machine."""
    environment["ONECARD_SERVER__PORT"] = "1"


def fit(onecard, *arguments, **options):
    done = onecard("fit", *arguments, "--json", **options)
    return done, json.loads(done.stdout) if done.stdout else None


def test_fit_tells_the_plan_in_bytes(onecard):
    done, answer = fit(onecard, "demo", "--budget", "1GiB", "--context", "1024", "--parallel", "3", "--kv-type", "q8_0")
    assert done.returncode == 0
    assert answer["plan"] == {"context": 1024, "parallel": 3, "kv_type": "q8_0", "gpu_layers": 0, "kv_tokens": 0}
    assert set(answer["parts"]) == {"weights", "kv", "compute", "projector", "runtime"}
    assert sum(answer["parts"].values()) == answer["total_bytes"]
    assert (answer["fits"], answer["would_evict"], answer["budget_bytes"]) == (True, [], 2**30)


def test_model_that_does_not_fit_is_exit_code_3_with_the_sums(onecard):
    done, answer = fit(onecard, "demo", "--budget", "8MiB")
    assert done.returncode == 3
    assert not answer["fits"]
    assert "8 MiB usable" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_card_that_is_not_here_is_planned_from_its_budget(onecard):
    hidden = {"CUDA_VISIBLE_DEVICES": ""}
    done = onecard("fit", "demo", "--device", "cuda", "--budget", "11GiB", "--json", env=hidden)
    assert "no card is here" in done.stderr
    told = json.loads(done.stdout)
    assert (done.returncode, told["fits"], told["device"]["budget_bytes"]) == (0, True, 11 << 30)
    assert told["plan"]["gpu_layers"] > 0
    assert 0 < told["host"]["total_bytes"] < told["host"]["budget_bytes"]
    small = onecard("fit", "demo", "--device", "cuda", "--budget", "64MiB", env=hidden)
    assert (small.returncode, "on the card" in small.stderr) == (3, True)
    unknown = onecard("fit", "demo", "--device", "cuda", env=hidden)
    assert (unknown.returncode, "--budget 11GiB plans for a card that is not here" in unknown.stderr) == (1, True)


@pytest.mark.parametrize("budget", ["12", "0", "64KiB"])
def test_a_budget_without_its_unit_is_no_budget(onecard, budget):
    done = onecard("fit", "demo", "--budget", budget)
    like = "12GiB" if budget == "12" else "600MiB"
    assert (done.returncode, f"a size with its unit, such as {like}" in done.stderr) == (2, True)


@pytest.mark.parametrize("path", [HF_PATH, "demo"])
def test_adapters_that_are_not_served_are_told_and_take_nothing(onecard, tmp_path, path):
    config = tmp_path / "onecard.toml"
    config.write_text(f'[models.chat]\npath = "{path}"\n[models.chat.adapters]\nlegal = "gone"\n')
    done, answer = fit(onecard, "chat", "--config", str(config))
    (note,) = answer["notes"]
    assert note.startswith("adapter 'legal' is not served: there is no file or folder")
    assert (done.returncode, answer["fits"], answer["parts"].get("adapters", 0)) == (0, True, 0)
    assert f"note: {note}" in " ".join(onecard("fit", "chat", "--config", str(config)).stdout.split())


def test_without_a_card_the_smaller_of_both_budgets_counts(onecard):
    flags = ("--device", "cpu", "--budget", "300MiB", "--host-budget", "200MiB", "--json")
    told = json.loads(onecard("fit", "demo", *flags).stdout)
    assert (told["budget_bytes"], told["host"]["budget_bytes"], told["device"]) == (200 << 20, 200 << 20, None)
    assert told["host"]["parts"] == told["parts"]
    too_much = onecard("fit", "demo", "--device", "cpu", "--host-budget", "900TiB")
    assert too_much.returncode == 1
    assert "host_budget = " in too_much.stderr
    assert "but this machine has" in too_much.stderr


def test_other_models_leave_for_it(onecard, tmp_path):
    total = fit(onecard, "demo")[1]["total_bytes"]
    config = tmp_path / "onecard.toml"
    config.write_text('[models.a]\npath = "demo"\n[models.b]\npath = "demo"\n')
    room_for_one = str(int(1.5 * total))
    _, answer = fit(onecard, "a", "--with", "b", "--budget", room_for_one, "--config", str(config))
    assert answer["would_evict"] == ["b"]

    config.write_text('[models.a]\npath = "demo"\n[models.b]\npath = "demo"\npinned = true\n')
    done, answer = fit(
        onecard, "a", "--with", "b", "--budget", str(total + 2**20), "--context", "4096", "--config", str(config)
    )
    assert done.returncode == 3
    assert not answer["fits"]


def test_folder_is_estimated_in_the_type_a_processor_computes_in(onecard):
    done, answer = fit(onecard, str(HF_PATH), "--budget", "2GiB")
    assert done.returncode == 0
    assert (answer["backend"], answer["source"]) == ("bnb", "header")
    with (HF_PATH / "model.safetensors").open("rb") as file:
        header_bytes = 8 + int.from_bytes(file.read(8), "little")
    stored = (HF_PATH / "model.safetensors").stat().st_size - header_bytes
    head_again = 1200 * 192 * 4
    assert answer["parts"]["weights"] == 2 * stored + head_again


def test_the_kv_type_of_a_folder_is_the_one_it_computes_in_and_no_other(onecard):
    _, answer = fit(onecard, str(HF_PATH), "--budget", "2GiB")
    refused = onecard("fit", str(HF_PATH), "--kv-type", "q8_0")
    assert answer["plan"]["kv_type"] == "f32"
    assert refused.returncode == 2
    assert "--kv-type" in refused.stderr


def test_table_is_for_people(onecard):
    done = onecard("fit", "demo", "--budget", "1GiB")
    assert done.returncode == 0
    assert done.stdout.startswith("demo fits: context 4096")
    assert "weights" in done.stdout
    assert "estimate: computed from the files" in done.stdout


def test_wrong_use_is_exit_code_2(onecard, tmp_path):
    assert onecard("fit", "demo", "--kv-type", "q9").returncode == 2
    assert onecard("fit", str(tmp_path / "nothing.gguf")).returncode == 2
    assert onecard("fit", "demo", "--context", "-1").returncode == 2


def test_a_model_without_files_is_told_by_what_is_wrong_with_it(onecard, tmp_path):
    (tmp_path / "o.toml").write_text("[models.gone]\npath = 'away'")
    (tmp_path / "notes.md").write_text("# notes")
    gone = onecard("fit", "gone", "-c", "o.toml")
    assert (gone.returncode, gone.stderr) == (
        2,
        f"onecard: model 'gone': there is no file or folder {tmp_path}/away\n",
    )
    assert "notes.md is no .gguf file" in onecard("fit", "notes.md").stderr
    nope = onecard("fit", "nope", env={"ONECARD_URL": "http://far.example:99/v1"})
    assert nope.returncode == 2
    assert "hint: a running server knows its own: http://far.example:99/v1/capacity?model=nope" in nope.stderr
    assert "hint: did you mean demo? A running server" in onecard("fit", "dmeo").stderr


@pytest.mark.engine
def test_what_is_far_beyond_the_budget_is_computed_without_a_word_of_the_log(onecard, environment, tmp_path):
    """The real engine's child is asked for the one, and not for the other, which would take it 20 s to give up."""
    del environment["ONECARD_TEST_ENGINE"]
    environment["XDG_DATA_HOME"] = str(tmp_path)
    for context, code, source in (("512", 0, "dry"), ("9999999", 3, "header")):
        done, answer = fit(onecard, "demo", "--budget", "1GiB", "--context", context, "--parallel", "64")
        assert (done.returncode, answer["source"]) == (code, source)
        assert "dry_load_failed" not in done.stderr


def test_broken_file_is_a_sentence(onecard, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(60))
    done = onecard("fit", str(broken))
    assert done.returncode == 1
    assert done.stderr.startswith(f"onecard: {broken}: ")
    assert "Traceback" not in done.stderr


def test_models_that_give_vectors_take_what_their_engine_takes_whatever_is_asked(onecard):
    for flags in ((), ("--parallel", "4")):
        done, answer = fit(onecard, str(minilm()), "--budget", "2GiB", *flags)
        assert done.returncode == 0
        assert (answer["gives"], answer["plan"]["parallel"]) == ("vectors", JOBS_AT_ONCE)
        assert {other["parallel"] for other in answer["alternatives"]} <= {JOBS_AT_ONCE}


def test_a_context_beyond_the_trained_one_is_told(onecard):
    said = "beware: the model was trained for a context of 4096 tokens"
    assert said in onecard("fit", "demo", "--budget", "1GiB", "--context", "8192").stdout
    assert said not in onecard("fit", "demo", "--budget", "1GiB", "--context", "4096").stdout
