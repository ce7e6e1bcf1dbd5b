"""Flags over environment over file over defaults, and errors with source, key and hint."""

import pytest

from server.settings.config_source import ConfigError, load_settings


@pytest.fixture
def write(tmp_path):
    def _write(text, name="onecard.toml"):
        file = tmp_path / name
        file.write_text(text)
        return file

    return _write


def test_flag_beats_environment_beats_file_beats_default(write, monkeypatch):
    file = write("[server]\nport = 1\nmax_queue = 2\nhost = 'localhost'")
    monkeypatch.setenv("ONECARD_SERVER__PORT", "3")
    monkeypatch.setenv("ONECARD_SERVER__MAX_QUEUE", "4")
    loaded = load_settings(file, flags={"server": {"port": 5}})
    server = loaded.settings.server
    assert (server.port, server.max_queue, server.host, server.sse_keepalive_s) == (5, 4, "localhost", 5)
    origins = [loaded.origin("server", key) for key in ("port", "max_queue", "host", "cors")]
    assert origins == ["flag", "environment", str(file), None]


def test_the_environment_reaches_lists_sizes_and_models(monkeypatch):
    monkeypatch.setenv("ONECARD_SERVER__API_KEYS", "one,two")
    monkeypatch.setenv("ONECARD_SERVER__CORS", '["https://a.example"]')
    monkeypatch.setenv("ONECARD_MEMORY__BUDGET", "2GiB")
    monkeypatch.setenv("ONECARD_DEFAULTS__CONTEXT", "4096")
    monkeypatch.setenv("ONECARD_MODELS__CHAT__PATH", "demo")
    monkeypatch.setenv("ONECARD_MODELS__CHAT__PRELOAD", "true")
    settings = load_settings().settings
    assert settings.server.api_keys == ["one", "two"]
    assert settings.server.cors == ["https://a.example"]
    assert settings.memory.budget == 2 * 2**30
    assert settings.models["chat"].context == 4096
    assert settings.models["chat"].preload


def test_other_variables_with_our_prefix_are_no_settings(monkeypatch):
    monkeypatch.setenv("ONECARD_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("ONECARD_SERVER__PORT", "")
    assert load_settings().settings.server.port == 8080


def test_the_default_file_is_read_when_there_is_one(tmp_path, monkeypatch):
    folder = tmp_path / "xdg" / "onecard"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text("[server]\nport = 77")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert load_settings().settings.server.port == 77


def test_a_folder_in_the_place_of_the_default_file_is_told(tmp_path, monkeypatch):
    (tmp_path / "onecard" / "config.toml").mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"config\.toml: this is a folder"):
        load_settings()


def test_a_relative_folder_of_configurations_counts_as_none(tmp_path, monkeypatch):
    (tmp_path / "here" / "onecard").mkdir(parents=True)
    (tmp_path / "here" / "onecard" / "config.toml").write_text("[server]\nport = 77")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "here")
    assert load_settings().file is None


def test_paths_start_at_the_folder_they_were_written_in(write, tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    file = write(
        "[server]\napi_key_file = 'keys'\n[models]\na.path = 'a.gguf'\nb.path = '~/b.gguf'", name="conf/c.toml"
    )
    (tmp_path / "conf" / "keys").write_text("k")
    (tmp_path / "conf" / "keys").chmod(0o600)
    monkeypatch.setenv("HOME", "/home/someone")
    settings = load_settings(file, flags={"models": {"c": {"path": "c.gguf"}}}).settings
    paths = {name: model.path for name, model in settings.models.items()}
    assert paths == {"a": str(tmp_path / "conf/a.gguf"), "b": "/home/someone/b.gguf", "c": str(tmp_path / "c.gguf")}
    assert settings.server.api_keys == ["k"]


@pytest.mark.parametrize("reference", ["demo", "smollm2", "hf:org/repo:Q4_K_M", "org/repo", "org/repo:Q4_K_M@v1"])
def test_references_are_no_paths(write, reference):
    assert load_settings(write(f"[models.a]\npath = '{reference}'")).settings.models["a"].path == reference


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[server]\nprot = 1", "onecard.toml: server.prot is an unknown key. hint: did you mean 'port'?"),
        ("[servr]\nport = 1", "onecard.toml: servr is an unknown section. hint: did you mean 'server'?"),
        ("[models.a]\npath = 'x'\ncontxt = 1", "models.a.contxt is an unknown key. hint: did you mean 'context'?"),
        ("[model.a]\npath = 'x'", "model is an unknown section. hint: did you mean 'models'?"),
        ("[models.a]\naliases = ['x']", "onecard.toml: models.a.path is missing"),
        ("[server]\nzzz = 1", "server.zzz is an unknown key. hint: there are host, port"),
        (
            "[memory]\nbudget = '12 XB'",
            "memory.budget = '12 XB': should be 'auto' or 12GiB, 600MiB, 12GB or a plain number",
        ),
        ("[server]\nport = 'http'", "server.port = 'http': should be a whole number"),
        ("[server]\nport = true", "server.port = true: expected a number, not true or false"),
        ("[server", "onecard.toml: this is no TOML"),
        ("a = " + "9" * 5000, "onecard.toml: it has a number of more than 4300 digits"),
        ("a = " + "[" * 5000, "onecard.toml: its arrays or tables are too deep"),
        ("server = 3", "onecard.toml: server = 3: should be a table, [server]"),
        ("[models.a]\npath = ''", "models.a.path is empty"),
        ("[server]\napi_keys = ['']", "server.api_keys: a key is one or more"),
        ("[models]\na = 'demo'", "models.a = 'demo': should be a table, [models.a] with path = ..."),
        ("[models.' ']\npath = 'demo'", 'onecard.toml: models." ": a model name has 1 to 200 characters'),
        ("[models.'a b']\npath = 3", 'models."a b".path = 3: should be a text in quotes'),
        ("[server]\nallow_public = 'perhaps'", "server.allow_public = 'perhaps': should be true or false"),
        ("[defaults]\ncontext = true", "defaults.context = true: should be 'auto' or a number, not true or false"),
        ("[server]\ncors = ['http://x.com/a']", "server.cors = 'http://x.com/a': an origin looks like https://"),
    ],
)
def test_an_error_names_file_key_and_hint(write, text, sentence):
    with pytest.raises(ConfigError) as caught:
        load_settings(write(text))
    assert sentence in str(caught.value)


def test_an_error_names_the_flag_or_the_environment(monkeypatch):
    with pytest.raises(ConfigError, match=r"^flag --port = 'x'"):
        load_settings(flags={"server": {"port": "x"}})
    monkeypatch.setenv("ONECARD_SERVER__PROT", "1")
    with pytest.raises(ConfigError, match=r"^environment: server.prot is an unknown key. hint: did you mean 'port'"):
        load_settings()
    monkeypatch.delenv("ONECARD_SERVER__PROT")
    monkeypatch.setenv("ONECARD_SERVR__PORT", "1")
    with pytest.raises(ConfigError, match=r"ONECARD_SERVR__PORT names no section. hint: did you mean 'server'"):
        load_settings()


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ONECARD_PORT", "ONECARD_SERVER__PORT"),
        ("ONECARD_SERVER_PORT", "ONECARD_SERVER__PORT"),
        ("onecard_server_port", "ONECARD_SERVER__PORT"),
        ("ONECARD_API_KEYS", "ONECARD_SERVER__API_KEYS"),
        ("ONECARD_BUDGET", "ONECARD_MEMORY__BUDGET"),
        ("ONECARD_KEEP_ALIVE", "ONECARD_SCHEDULER__KEEP_ALIVE_S"),
        ("ONECARD_NONSENSE", "ONECARD_SECTION__KEY"),
    ],
)
def test_a_variable_that_would_set_nothing_names_the_nearest(monkeypatch, name, meant):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError) as caught:
        load_settings()
    assert str(caught.value).startswith(f"environment: {name} is no setting. hint: ")
    assert meant in str(caught.value)


def test_variables_of_others_are_left_alone(monkeypatch):
    ours = ("ONECARD_URL", "ONECARD_API_KEY", "ONECARD_CONFIG", "ONECARD_BACKENDS", "ONECARD_TEST_ENGINE")
    for name in (*ours, "ONECARD_SERVICE_HOST"):
        monkeypatch.setenv(name, "x")
    for name in ("ONECARD_PORT", "ONECARD_PORT_8080_TCP"):
        monkeypatch.setenv(name, "tcp://192.0.2.1:8080")
    monkeypatch.setenv("ONECARD_SERVER", '{"port": 5}')
    assert load_settings().settings.server.port == 5


def test_a_flag_is_named_as_it_is_written():
    with pytest.raises(ConfigError, match=r"^flag --log-format = 'xml': should be 'text' or 'json'$"):
        load_settings(flags={"logging": {"format": "xml"}})


def test_a_byte_order_mark_is_no_matter(tmp_path):
    file = tmp_path / "windows.toml"
    file.write_bytes(b"\xef\xbb\xbf[server]\r\nport = 7\r\n")
    assert load_settings(file).settings.server.port == 7
    file.write_bytes("[server]".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"this is no UTF-8 text \(at byte 0\)"):
        load_settings(file)


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match=r"this is a folder. hint: name the file"):
        load_settings(tmp_path)


def test_every_wrong_key_is_named_at_once(write):
    with pytest.raises(ConfigError) as caught:
        load_settings(write("[server]\nport = -1\nhots = 'x'\n[logging]\nlevel = 'loud'"))
    assert len(str(caught.value).splitlines()) == 3


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no such file. hint: `onecard config init"):
        load_settings(tmp_path / "none.toml")


def test_a_wrong_key_is_never_shown(write):
    with pytest.raises(ConfigError) as caught:
        load_settings(write("[server]\napi_keys = ['open sesame']"))
    assert "sesame" not in str(caught.value)
