"""`speculation = "model:NAME"`: which model drafts for which, and what is said where none can."""

import shutil
from pathlib import Path

import pytest

from backends.backend import HeaderError
from backends.messages import GeneratorPlan
from backends.registry import BACKENDS
from demo import GGUF_PATH, HF_PATH
from server.memory.files import look
from server.settings.catalog import Catalog, entry_of
from server.settings.config import Settings
from server.settings.named_models import CatalogError
from tests.models import canary_mtp


def catalog_of(**models):
    return Catalog(Settings.model_validate({"models": models}))


def test_a_model_drafts_for_another_one_by_its_name_or_alias():
    models = catalog_of(
        big={"path": str(GGUF_PATH), "speculation": "model:little"},
        small={"path": str(GGUF_PATH), "aliases": ["little"]},
    )

    assert models.resolve("big").draft is models.resolve("small")
    assert models.resolve("small").draft is None
    assert models.resolve("big").config.speculation_mode == "auto"


def test_what_the_defaults_say_of_a_draft_model_is_for_the_models_it_can_be_for():
    settings = {
        "defaults": {"speculation": "model:small"},
        "models": {
            "small": {"path": str(GGUF_PATH)},
            "big": {"path": str(GGUF_PATH)},
            "folder": {"path": str(HF_PATH)},
            "own": {"path": str(GGUF_PATH), "speculation": "off"},
        },
    }
    models = Catalog(Settings.model_validate(settings))

    assert {entry.name: entry.draft and entry.draft.name for entry in models.entries} == {
        "small": None,
        "big": "small",
        "folder": None,
        "own": None,
    }


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("model:nothing", "names no model. hint: the models are big, folder"),
        ("model:big", "is the model itself"),
        ("model:folder", "is a model folder, and .* is a GGUF file"),
    ],
)
def test_a_draft_model_that_cannot_be_one_is_refused_by_name(said, why):
    with pytest.raises(CatalogError, match=f"^model 'big': speculation = '{said}' {why}"):
        catalog_of(big={"path": str(GGUF_PATH), "speculation": said}, folder={"path": str(HF_PATH)})


@pytest.mark.parametrize("word", ["mpt", "model", "model:", "model: x", "nothing"])
def test_a_way_to_draft_that_is_none_is_refused(word):
    with pytest.raises(ValueError, match=r"is no way to draft tokens|a model name"):
        catalog_of(big={"path": str(GGUF_PATH), "speculation": word})


@pytest.mark.parametrize("order", [("big", "a"), ("a", "big")])
def test_another_draft_model_means_another_load(tmp_path, order):
    other = Path(shutil.copy(GGUF_PATH, tmp_path / "a.gguf"))
    big = {"path": str(GGUF_PATH), "speculation": "model:a"}
    before, after = (
        catalog_of(**{name: {"big": big, "a": {"path": str(path)}}[name] for name in order})
        for path in (GGUF_PATH, other)
    )
    draft = before.resolve("a")

    change = before.become(after)

    assert change.reloads == {"big", "a"}
    assert change.keys["big"] == ["speculation"]
    assert before.resolve("big").draft is draft
    assert draft.path == other


def test_a_model_that_cannot_draft_for_the_one_that_waits_for_it_changes_nothing():
    """Given a model that is to draft once it is fetched, when files of another kind come, then all stays as it was."""
    fetched = "org/repo:Q4_K_M"
    models = catalog_of(big={"path": str(GGUF_PATH), "speculation": f"model:{fetched}"})
    settings = Settings.model_validate({"models": {"big": {"path": str(GGUF_PATH)}}})

    with pytest.raises(CatalogError, match="one process computes with one library"):
        models.add(entry_of(settings, fetched, str(HF_PATH)))

    assert models.names == ["big"]
    assert models.resolve(fetched) is None
    assert len(models.unknown_names) == 1


def test_a_model_that_drafts_for_another_one_stays_where_it_would_be_missed():
    models = catalog_of(big={"path": str(GGUF_PATH), "speculation": "model:small"}, small={"path": str(GGUF_PATH)})
    small = models.resolve("small")

    with pytest.raises(CatalogError, match="names no model"):
        models.remove("small")

    assert models.resolve("small") is small
    assert models.resolve("big").draft is small


def test_a_draft_model_whose_files_stay_and_are_of_another_kind_changes_nothing(tmp_path):
    """Given a folder that is gone while its model serves on, when a file's model is to draft with it, all stays."""
    folder = Path(shutil.copytree(HF_PATH, tmp_path / "folder"))
    served = catalog_of(big={"path": str(GGUF_PATH)}, small={"path": str(folder)})
    shutil.rmtree(folder)
    wanted = catalog_of(big={"path": str(GGUF_PATH), "speculation": "model:small"}, small={"path": str(folder)})

    with pytest.raises(CatalogError, match="one process computes with one library"):
        served.become(wanted)

    assert served.resolve("big").config.draft_name is None
    assert served.resolve("big").draft is None


def test_a_draft_model_that_is_not_there_is_told_when_its_model_is_looked_at():
    models = catalog_of(big={"path": str(GGUF_PATH), "speculation": "model:a"}, a={"path": "/gone/a.gguf"})

    with pytest.raises(HeaderError, match=r"its draft model 'a' is not there: .*gone"):
        look(models.resolve("big"))


def test_an_estimate_counts_the_draft_model_where_its_model_computes():
    models = catalog_of(big={"path": str(GGUF_PATH), "speculation": "model:small"}, small={"path": str(GGUF_PATH)})
    plan = GeneratorPlan(512, 2)
    both, alone = (look(models.resolve(name)).header for name in ("big", "small"))

    predicted = {
        name: BACKENDS["gguf"].estimate(header, plan).host for name, header in (("both", both), ("alone", alone))
    }

    own = predicted["alone"]
    assert predicted["both"].by_name["draft"] >= own.weights + own.kv + own.compute
    assert predicted["both"].total_bytes == own.total_bytes + predicted["both"].by_name["draft"]


def test_a_layer_that_predicts_further_tokens_has_to_be_there_where_a_model_asks_for_it(tmp_path):
    with_one = canary_mtp.build(tmp_path / "mtp.gguf")
    models = catalog_of(
        yes={"path": str(with_one), "speculation": "mtp"}, no={"path": str(GGUF_PATH), "speculation": "mtp"}
    )
    plan, gguf = GeneratorPlan(512, 2), BACKENDS["gguf"]

    assert gguf.estimate(look(models.resolve("yes")).header, plan).host.by_name["draft"] > 0
    with pytest.raises(HeaderError, match="predicts further tokens, and this one has none"):
        look(models.resolve("no"))
    with pytest.raises(HeaderError, match="'mtp' is for GGUF files"):
        look(catalog_of(folder={"path": str(HF_PATH), "speculation": "mtp"}).resolve("folder"))


def test_what_the_defaults_say_of_such_a_layer_is_for_files_that_have_one():
    settings = {
        "defaults": {"speculation": "mtp"},
        "models": {"a": {"path": str(GGUF_PATH)}, "b": {"path": str(HF_PATH)}},
    }

    for entry in Catalog(Settings.model_validate(settings)).entries:
        assert "draft" not in BACKENDS[entry.backend].estimate(look(entry).header, GeneratorPlan(512, 2)).host.by_name
