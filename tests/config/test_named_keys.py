"""`[keys.NAME]` and the lines of a key file that belong to it."""

import pytest
from pydantic import ValidationError

from server.settings.changes import taken_over
from server.settings.config import Settings
from server.settings.config_source import ConfigError, load_settings


@pytest.fixture
def load(tmp_path):
    def _load(text, *lines):
        keys = tmp_path / "keys"
        if lines:
            keys.write_text("\n".join(lines) + "\n")
            keys.chmod(0o600)
            text = f"[server]\napi_key_file = 'keys'\n{text}"
        file = tmp_path / "onecard.toml"
        file.write_text(text)
        return load_settings(file).settings

    return _load


def test_a_key_stands_in_its_table_or_by_its_name_in_the_key_file(load):
    settings = load("[keys.a]\nkey = 'one'\n[keys.b]\nadmin = true\nmodels = 'x,y'", "plain", "admin boss", "b two")
    assert settings.every_key == ["boss", "two", "plain", "one"]
    assert settings.keys["b"].limits.models == ("x", "y")
    assert "two" not in repr(settings.keys["b"])


@pytest.mark.parametrize(
    ("text", "lines", "sentence"),
    [
        ("[keys.a]", [], r"keys\.a has no key\. hint: key = \"\.\.\.\", or a line 'a KEY' in api_key_file"),
        ("", ["c secret"], r"keys: it has a key for 'c', and there is no \[keys\.c\]"),
        ("[keys.a]\nkey = 'secret'", ["a secret"], r"a key for 'a', and \[keys\.a\] has one too"),
        ("[keys.a]", ["a secret", "a secret2"], "two keys for one name"),
        ("[keys.a]\nkey = 'secret'\n[keys.b]\nkey = 'secret'", [], r"keys\.b has the same key as keys\.a"),
        ("[keys.a]\nkey = 'secret'", ["secret"], r"keys\.a has the same key as api_keys or admin_keys"),
        ("[keys.a]\nkey = 'secret two'", [], r"keys\.a\.key: a key is one or more printable"),
        ("[keys.a]\nkey = 'secret'\nrequest_per_minute = 1", [], "did you mean 'requests_per_minute'"),
        ("[keys.a]\nkey = 'secret'\ntokens_per_minute = 0", [], r"keys\.a\.tokens_per_minute: "),
        ("[keys.admin]\nkey = 'secret'", [], "is what keys without a name are called"),
    ],
)
def test_what_cannot_be_is_a_sentence_that_shows_no_key(load, text, lines, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        load(text, *lines)
    assert "secret" not in str(caught.value)


def test_names_are_short_words():
    for name in ("", "a b", "x" * 65, "api_keys"):
        with pytest.raises(ValidationError):
            Settings.model_validate({"keys": {name: {"key": "k"}}})


def test_a_running_server_takes_keys_over_and_names_those_that_differ():
    before = Settings.model_validate({"keys": {"a": {"key": "k"}, "b": {"key": "l"}, "c": {"key": "m"}}})
    after = Settings.model_validate({"keys": {"a": {"key": "k"}, "b": {"key": "l", "admin": True}, "d": {"key": "n"}}})
    taken, applied, kept = taken_over(before, after)
    assert taken.keys == after.keys
    assert (applied, kept) == (["keys.b", "keys.c", "keys.d"], [])
