"""What the settings accept, and how defaults reach the models."""

import pytest
from pydantic import ValidationError

from backends.registry import BACKENDS
from server.settings.config import ModelConfig, Settings
from server.settings.listener import is_loopback, public_without_key


def test_a_model_inherits_what_it_leaves_out():
    settings = Settings.model_validate(
        {
            "defaults": {"context": 4096, "parallel": 8, "kv_type": "q8_0"},
            "scheduler": {"keep_alive_s": -1, "preload": ["a"]},
            "models": {"a": {"path": "a.gguf", "parallel": 1}, "b": {"path": "b.gguf"}},
        }
    )
    a, b = settings.models["a"], settings.models["b"]
    assert (a.name, a.context, a.parallel, a.kv_type, a.keep_alive_s, a.preload) == ("a", 4096, 1, "q8_0", -1, True)
    assert (b.name, b.parallel, b.preload) == ("b", 8, False)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("1h30m", 5400),
        ("30s", 30),
        ("90", 90),
        (90, 90),
        ("1d", 86400),
        ("-1", -1),
        ("-1m", -1),
        ("0", 0),
        ("250ms", 0.25),
    ],
)
def test_a_keep_alive_is_written_as_in_a_request(written, seconds):
    settings = Settings.model_validate(
        {
            "scheduler": {"keep_alive_s": written},
            "models": {"a": {"path": "a"}, "b": {"path": "b", "keep_alive_s": written}},
        }
    )
    assert [model.keep_alive_s for model in settings.models.values()] == [seconds, seconds]


def test_other_times_are_written_so_too():
    settings = Settings.model_validate({"server": {"request_timeout_s": "10m"}, "scheduler": {"max_wait_s": "1m30s"}})
    assert (settings.server.request_timeout_s, settings.scheduler.max_wait_s) == (600, 90)


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().server.port = 1


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("qwen", True),
        ("Qwen/Qwen3-8B:Q4_K_M", True),
        ("модель", True),
        ("two words", True),
        ("", False),
        (" x", False),
        ("a\nb", False),
        ("a\x00b", False),
        ("a\x1b[31m", False),
        ("a\u202eb", False),
        ("x" * 201, False),
    ],
)
def test_names_are_printable(name, good):
    models = {"models": {name: {"path": "x.gguf"}}}
    if good:
        assert name in Settings.model_validate(models).models
    else:
        with pytest.raises(ValidationError):
            Settings.model_validate(models)


@pytest.mark.parametrize(
    "models",
    [
        {"a": {"path": "x", "aliases": ["b"]}, "b": {"path": "y"}},
        {"a": {"path": "x", "aliases": ["c"]}, "b": {"path": "y", "aliases": ["c"]}},
        {"a": {"path": "x", "aliases": ["a"]}},
        {"a": {"path": "x", "aliases": ["c", "c"]}},
        {"a": {"path": "x", "name": "other"}},
    ],
)
def test_a_name_means_one_model(models):
    with pytest.raises(ValidationError, match=r"already|own name"):
        Settings.model_validate({"models": models})


@pytest.mark.parametrize("key", ["expert_layers", "ffn_layers"])
def test_layers_cannot_be_partly_on_a_card_that_has_none(key):
    with pytest.raises(ValidationError, match=f"{key} keeps a part of layers from the card"):
        Settings.model_validate({"models": {"a": {"path": "x", key: 3, "gpu_layers": 0}}})


@pytest.mark.parametrize(
    "section",
    [
        {"server": {"port": 65536}},
        {"server": {"port": True}},
        {"server": {"max_queue": 0}},
        {"server": {"request_timeout_s": float("nan")}},
        {"server": {"request_timeout_s": 0}},
        {"server": {"api_keys": [""]}},
        {"server": {"api_keys": ["schlüssel"]}},
        {"memory": {"budget": 0}},
        {"memory": {"device": "tpu"}},
        {"scheduler": {"keep_alive_s": -2}},
        {"scheduler": {"keep_alive_s": float("inf")}},
        {"scheduler": {"keep_alive_s": "soon"}},
        {"scheduler": {"max_wait_s": "-1m"}},
        {"server": {"drain_s": "1h30"}},
        {"defaults": {"context": "big"}},
        {"defaults": {"parallel": 0}},
        {"defaults": {"kv_type": "q9_9"}},
        {"models": {"a": {}}},
        {"models": {"a": {"path": ""}}},
        {"models": {"a": {"path": "x", "expert_layers": -1}}},
        {"models": {"a": {"path": "x", "ffn_layers": -1}}},
        {"models": {"a": {"path": "x", "expert_layers": 10_001}}},
        {"models": {"a": {"path": "x", "expert_layers": True}}},
        {"models": {"a": {"path": "x", "context_max": -1}}},
        {"nonsense": {}},
    ],
)
def test_bad_values_are_refused(section):
    with pytest.raises(ValidationError):
        Settings.model_validate(section)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.evil.com", False),
        ("", False),
    ],
)
def test_only_loopback_needs_no_key(host, local):
    assert is_loopback(host) is local
    assert public_without_key(Settings.model_validate({"server": {"host": host}})) is not local
    assert not public_without_key(Settings.model_validate({"server": {"host": host, "api_keys": ["k"]}}))
    assert not public_without_key(Settings.model_validate({"server": {"host": host, "allow_public": True}}))


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("http://x.com/", "http://x.com"),
        ("HTTPS://App.Example.com", "https://app.example.com"),
        ("https://x.com:443", "https://x.com"),
        ("http://x.com:443", "http://x.com:443"),
        ("http://[::1]:3000/", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("localhost", "localhost"),
        ("*", "*"),
    ],
)
def test_an_origin_is_kept_as_browsers_send_it(written, sent):
    assert Settings.model_validate({"server": {"cors": [written]}}).server.cors == [sent]


@pytest.mark.parametrize("wrong", ["x.com", "http://x.com/app", "http://", "http://x.com?y", "http://u@x.com", ""])
def test_what_no_browser_sends_is_no_origin(wrong):
    with pytest.raises(ValidationError, match=r"an origin looks like"):
        Settings.model_validate({"server": {"cors": [wrong]}})


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_key_that_two_backends_have_takes_what_each_of_them_takes(backend):
    """They are keys of one table, so the first backend's bounds would be those of all."""
    own = BACKENDS[backend].options().model_fields
    of_all = {key: ModelConfig.model_fields[key] for key in own}
    assert {key: (field.annotation, field.metadata) for key, field in of_all.items()} == {
        key: (field.annotation, field.metadata) for key, field in own.items()
    }


def test_a_recording_may_be_as_long_as_it_is_where_nothing_is_written():
    model = ModelConfig.model_validate({"path": "whisper", "max_audio_s": 14400})
    assert model.options_of("speech") == {"max_audio_s": 14400.0}


def test_keys_are_not_in_the_repr():
    assert "sesame" not in repr(Settings.model_validate({"server": {"api_keys": ["sesame"]}}))


def test_a_pool_smaller_than_one_context_is_refused():
    with pytest.raises(ValidationError, match="less than one context of 4096"):
        ModelConfig(path="a.gguf", context=4096, kv_tokens=4000)
    assert ModelConfig(path="a.gguf", context=4096, kv_tokens=4096).kv_tokens == 4096
