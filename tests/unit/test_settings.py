"""Settings: which source wins, what wrong settings are told, and that secrets stay hidden."""

import logging
import pickle
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from bdr.errors import ConfigError
from bdr.settings import (
    BinaryStorageConfig,
    CacheConfig,
    InstanceConfig,
    LifecycleCleanupConfig,
    ReaperConfig,
    Settings,
    StorageType,
    UploadConfig,
    describe_settings,
    load_settings,
)
from bdr.settings.secrets import MASK

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, an empty home, and no setting in the environment."""
    for name in ("BDR_CONFIG", "DATABASE_URL", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "PYDANTIC_SETTINGS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    return tmp_path


@pytest.fixture
def write_toml(home: Path) -> Write:
    def write(text: str) -> Path:
        path = home / "cwd" / "bdr.toml"
        path.write_text(text)
        return path

    return write


def refusal(**arguments: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(**arguments)
    return str(caught.value).splitlines()


def sources(settings: Settings) -> dict[str, tuple[str, str]]:
    return {line.name: (line.value, line.source) for line in describe_settings(settings)}


def test_a_size_too_large_for_the_catalog_is_refused() -> None:
    assert refusal(cache={"capacity": "9" * 400 + "B"})[0].startswith("cache.capacity: ")


@pytest.mark.parametrize("written", [None, "never", "Never", "null", "none"])
def test_a_retention_may_be_never(written: str | None) -> None:
    settings = load_settings(lifecycle={"max_retention": written}, operations={"retention": written})
    assert settings.lifecycle.max_retention is None
    assert settings.operations.retention is None
    assert settings.lifecycle.zero_ref_retention == timedelta(hours=1)


def test_the_defaults() -> None:
    settings = load_settings()
    assert settings.database_url is None
    assert settings.storages == {}
    assert settings.storage is None
    assert settings.lifecycle.max_retention == timedelta(days=7)
    assert settings.reaper.write_grace == timedelta(minutes=15)
    assert settings.instance.name
    assert {source for _, source in sources(settings).values()} == {"default"}


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_the_data_folder_follows_the_platform(home: Path, monkeypatch: pytest.MonkeyPatch, platform: str) -> None:
    monkeypatch.setattr("sys.platform", platform)
    folder = {"linux": ".local/share", "darwin": "Library/Application Support"}[platform]
    assert load_settings().data_dir == home / "home" / folder / "bdr"
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "xdg"))
    assert load_settings().data_dir == home / "xdg" / "bdr"
    monkeypatch.setenv("BDR_DATA_DIR", "~/elsewhere")
    assert load_settings().data_dir == home / "home" / "elsewhere"


def test_arguments_beat_the_environment_beats_the_file_beats_the_default(
    write_toml: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_toml('namespace = "file"\n[reaper]\nbatch_size = 1\nlease = "1 min"\nconcurrency = 1')
    monkeypatch.setenv("BDR_REAPER__BATCH_SIZE", "2")
    monkeypatch.setenv("BDR_REAPER__LEASE", "2 min")
    settings = load_settings(reaper={"lease": "3 min"})
    shown = sources(settings)
    assert shown["reaper.lease"] == ("3m", "argument")
    assert shown["reaper.batch_size"] == ("2", "environment BDR_REAPER__BATCH_SIZE")
    assert shown["reaper.concurrency"] == ("1", f"file {path}")
    assert shown["namespace"] == ("file", f"file {path}")
    assert shown["reaper.max_attempts"] == ("8", "default")


def test_an_object_as_argument_replaces_its_section(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDR_LIFECYCLE__MAX_RETENTION", "1d")
    settings = load_settings(lifecycle=LifecycleCleanupConfig(zero_ref_retention=timedelta(0)))
    assert settings.lifecycle == LifecycleCleanupConfig(zero_ref_retention=timedelta(0))
    assert sources(settings)["lifecycle.max_retention"] == ("7d", "argument")


def test_an_empty_table_in_the_file_is_no_source(write_toml: Write) -> None:
    write_toml("[reaper]")
    assert sources(load_settings())["reaper.lease"] == ("5m", "default")


def test_arguments_that_are_none_are_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDR_NAMESPACE", "team")
    assert load_settings(namespace=None, database_url=None, storage=None).namespace == "team"


def test_the_file_is_found_where_it_is_named_then_here_then_at_home(
    home: Path, write_toml: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_home = home / "home" / ".config" / "bdr" / "bdr.toml"
    at_home.parent.mkdir(parents=True)
    at_home.write_text('namespace = "home"')
    assert load_settings().namespace == "home"
    write_toml('namespace = "here"')
    assert load_settings().namespace == "here"
    (home / "named.toml").write_text('namespace = "named"')
    monkeypatch.setenv("BDR_CONFIG", str(home / "named.toml"))
    assert load_settings().namespace == "named"
    monkeypatch.setenv("BDR_CONFIG", str(home / "absent.toml"))
    assert refusal() == [
        f"{home}/absent.toml, the file that BDR_CONFIG names, cannot be read: No such file or directory"
    ]


def test_a_file_that_is_not_toml_is_refused_with_the_line(write_toml: Write) -> None:
    path = write_toml("namespace = \n")
    assert refusal()[0].startswith(f"{path} is not valid TOML: ")
    assert "line 1" in refusal()[0]
    path.write_bytes(b"\xff\xfe")
    assert refusal() == [f"{path}, the configuration file, is not UTF-8 text"]


def test_storages_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDR_STORAGES__main__STORAGE_TYPE", "S3")
    monkeypatch.setenv("BDR_STORAGES__main__CONFIG__BUCKET", "b")
    monkeypatch.setenv("BDR_STORAGES__MAIN__CONFIG__SECRET_KEY", "1e5")
    monkeypatch.setenv("BDR_STORAGES__cold-1__STORAGE_TYPE", "azblob")
    monkeypatch.setenv("BDR_DEFAULT_STORAGE", "cold-1")
    settings = load_settings()
    assert settings.storages["main"].storage_type is StorageType.S3
    assert settings.storages["main"].config == {"bucket": "b", "secret_key": "1e5"}
    assert settings.storage == BinaryStorageConfig(storage_type="azblob")


def test_storage_is_short_for_the_default_one_of_storages(write_toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toml(
        'default_storage = "fast"\n[storages.fast]\nstorage_type = "fs"\nroot = "/a"\ntimeout = "5s"\n'
        '[storages.slow]\nstorage_type = "fs"\nroot = "/s"'
    )
    monkeypatch.setenv("BDR_STORAGE__ROOT", "/b")
    settings = load_settings()
    assert settings.storage is settings.storages["fast"]
    shown = sources(settings)
    assert shown["storages.fast.root"] == ("/b", "environment BDR_STORAGE__ROOT")
    assert shown["storages.fast.timeout"] == ("5s", f"file {path}")
    given = BinaryStorageConfig(storage_type="memory")
    assert load_settings(storage=given).storages["fast"] == given
    assert load_settings(storage=given).storages["slow"].root == "/s"


def test_one_source_that_contradicts_itself_is_refused(write_toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_toml('storages.main.root = "/a"\nstorage.root = "/b"')
    assert refusal() == [
        f"storages.main.root in {path} and storage.root in {path} set the same thing: remove one of them"
    ]
    path.unlink()
    monkeypatch.setenv("BDR_REAPER", "x")
    monkeypatch.setenv("BDR_REAPER__LEASE", "5m")
    assert refusal() == ["BDR_REAPER and BDR_REAPER__LEASE set the same thing: remove one of them"]


def test_the_default_storage_must_be_one_of_those_configured() -> None:
    config = BinaryStorageConfig(storage_type="memory")
    assert refusal(storages={"hot": config, "cold": config}) == [
        "default_storage is `main`, but the storages are cold, hot: name one of them, or configure it too"
    ]
    assert load_settings(storages={"hot": config}, default_storage="hot").storage == config


@pytest.mark.parametrize("name", ["", "Upper", "-a", "a b", "../x", "a" * 64, "ä"])
def test_names_of_storages_are_plain(name: str) -> None:
    config = BinaryStorageConfig(storage_type="memory")
    assert any("cannot name a storage" in line for line in refusal(storages={name: config}, default_storage=name))


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "a\x00", "x" * 129])
def test_namespaces_are_plain(name: str) -> None:
    assert refusal(namespace=name)[0].startswith("namespace: ")


def test_the_database_url_and_where_it_is_looked_for(
    home: Path, write_toml: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def url_and_source() -> tuple[str, str]:
        settings = load_settings()
        assert settings.database_url is not None
        return settings.database_url.get_secret_value(), settings.source_of("database_url")

    caplog.set_level(logging.INFO)
    path = write_toml('database_url = "postgresql://file/db"')
    assert url_and_source() == ("postgresql://file/db", f"file {path}")
    assert caplog.messages == []
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:hunter2@general/db")
    assert url_and_source() == ("postgresql://u:hunter2@general/db", "environment DATABASE_URL")
    assert caplog.messages == ["database_url is taken from the environment variable DATABASE_URL"]
    (home / "url").write_text("postgresql://secret/db\n")
    monkeypatch.setenv("BDR_DATABASE_URL_FILE", str(home / "url"))
    assert url_and_source() == ("postgresql://secret/db", "environment BDR_DATABASE_URL_FILE")
    monkeypatch.setenv("BDR_DATABASE_URL", "postgresql://own/db")
    assert refusal() == ["BDR_DATABASE_URL and BDR_DATABASE_URL_FILE set the same thing: remove one of them"]
    monkeypatch.delenv("BDR_DATABASE_URL_FILE")
    assert url_and_source() == ("postgresql://own/db", "environment BDR_DATABASE_URL")
    assert len(caplog.messages) == 1


def test_a_url_file_must_be_there_and_hold_something(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDR_DATABASE_URL_FILE", str(home / "url"))
    assert refusal()[0].endswith("the file that BDR_DATABASE_URL_FILE names, cannot be read: No such file or directory")
    (home / "url").write_text("\n")
    assert refusal() == [f"BDR_DATABASE_URL_FILE: {home}/url is empty: it must hold the database's URL"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("BDR_DATABSE_URL", "there is no such setting; did you mean BDR_DATABASE_URL?"),
        ("BDR_STORAGE_ROOT", "there is no such setting; did you mean BDR_STORAGE__ROOT?"),
        ("BDR_REAPR__LEASE", "there is no such setting; did you mean BDR_REAPER__LEASE?"),
        ("BDR_CONFIGG", "there is no such setting; did you mean BDR_CONFIG?"),
        ("BDR_REAPER__LEESE", "there is no setting `LEESE`; did you mean `LEASE`?"),
        ("BDR_UPLOAD__COLOUR", "there is no setting `COLOUR`; known here: LEASE, RESERVE_AHEAD"),
        ("BDR_STORAGES__MAIN__ROOTS", "there is no setting `ROOTS`; did you mean `ROOT`?"),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_right_one(
    monkeypatch: pytest.MonkeyPatch, name: str, told: str
) -> None:
    monkeypatch.setenv("BDR_STORAGE__STORAGE_TYPE", "memory")
    monkeypatch.setenv(name, "1s")
    assert refusal() == [f"{name}: {told}"]


def test_an_unknown_variable_like_nothing_known_is_told_all_beginnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDR_XYZ", "1")
    (line,) = refusal()
    assert line.startswith("BDR_XYZ: there is no such setting; all begin with one of BDR_DATABASE_URL, BDR_STORAGE, ")


def test_an_unknown_key_in_the_file_is_named_with_the_file(write_toml: Write) -> None:
    path = write_toml('nmespace = "x"\n[reaper]\nbatchsize = 1\n[reapers]\nlease = "1s"\n[empty]\n')
    tables = "lifecycle, reaper, upload, cache, database, instance, operations, access, fsck"
    names = f"database_url, storage, storages, default_storage, namespace, data_dir, migrate_on_start, {tables}"
    assert sorted(refusal()) == [
        f"empty in {path}: there is no such setting; all begin with one of {names}",
        f"nmespace in {path}: there is no such setting; did you mean namespace?",
        f"reaper.batchsize in {path}: there is no setting `batchsize`; did you mean `batch_size`?",
        f"reapers.lease in {path}: there is no such setting; did you mean reaper.lease?",
    ]


def test_an_unknown_argument_is_named() -> None:
    assert refusal(databaseurl="x") == ["databaseurl: there is no such setting; did you mean database_url?"]


def test_every_wrong_setting_has_a_line_with_the_name_as_written(
    write_toml: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_toml('[cache]\ncapacity = "much"')
    monkeypatch.setenv("BDR_REAPER__BATCH_SIZE", "0")
    monkeypatch.setenv("BDR_UPLOAD__LEASE", "0s")
    monkeypatch.setenv("BDR_STORAGE__ROOT", "/x")
    names = [line.split(": ")[0] for line in refusal(migrate_on_start="perhaps")]
    assert sorted(names) == [
        "BDR_REAPER__BATCH_SIZE",
        "BDR_UPLOAD__LEASE",
        f"cache.capacity in {path}",
        "migrate_on_start",
        "storages.main.storage_type",
    ]


def test_variables_of_the_tests_and_empty_ones_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDR_TEST_ANYTHING", "1")
    monkeypatch.setenv("BDR_REAPER__LEASE", "")
    monkeypatch.setenv("BDR_CONFIG", "")
    assert load_settings().reaper.lease == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: UploadConfig(lease=timedelta(0)), "UploadConfig.lease: .* is too short"),
        (
            lambda: ReaperConfig(backoff_max=timedelta(seconds=1)),
            "ReaperConfig: `backoff_max` must not be shorter than `backoff_initial`",
        ),
        (
            lambda: InstanceConfig(timeout=timedelta(seconds=15)),
            "InstanceConfig: `timeout` must be at least twice `heartbeat_interval`",
        ),
        (
            lambda: CacheConfig(**dict.fromkeys(["size"], 1)),
            "CacheConfig.size: there is no setting `size`; known here: capacity",
        ),
        (lambda: BinaryStorageConfig(storage_type="fs"), "BinaryStorageConfig: a storage of type fs needs `root`"),
        (lambda: BinaryStorageConfig(storage_type="f s"), "'f s' is no storage type: use fs, s3, memory, redis"),
        (
            lambda: BinaryStorageConfig(storage_type="s3", config={"secret": ["x"]}),
            "BinaryStorageConfig.config: the option `secret` must be text, a number or a boolean, not list",
        ),
    ],
)
def test_a_section_built_by_hand_is_checked(build: Callable[[], object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build()


SECRET = "hunter2"
HOLDS_SECRETS = BinaryStorageConfig(
    storage_type="s3",
    root="data",
    config={
        "bucket": "plain",
        "endpoint": f"https://{SECRET}:{SECRET}@h:9000/?x=1&sig_token={SECRET}",
        **dict.fromkeys(
            ("access_key", "SecretKey", "password", "session_token", "sas", "credential", "connection_string"), SECRET
        ),
    },
)


def test_the_debugging_log_of_pydantic_settings_shows_no_secret(
    write_toml: Write, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_toml(f'database_url = "postgresql://u:{SECRET}@h/db"')
    monkeypatch.setenv("PYDANTIC_SETTINGS_DEBUG", "1")
    caplog.set_level(logging.DEBUG)
    load_settings()
    assert "<not shown>" in caplog.text
    assert SECRET not in caplog.text


def test_secrets_are_never_shown() -> None:
    settings = load_settings(
        storage=HOLDS_SECRETS, database_url=f"postgresql://{SECRET}:{SECRET}@h/db?password={SECRET}"
    )
    shown = [str(settings), repr(settings), settings.model_dump_json()]
    shown += [
        str(HOLDS_SECRETS),
        repr(HOLDS_SECRETS),
        HOLDS_SECRETS.model_dump_json(),
        str(describe_settings(settings)),
    ]
    assert [text for text in shown if SECRET in text] == []
    lines = sources(settings)
    assert lines["storages.main.config.bucket"] == ("plain", "argument")
    assert lines["storages.main.config.access_key"] == (MASK, "argument")
    assert lines["storages.main.config.endpoint"] == (f"https://h:9000/?x=1&sig_token={MASK}", "argument")
    assert lines["database_url"] == (f"postgresql://h/db?password={MASK}", "argument")
    assert sources(load_settings(database_url=f"host=h password={SECRET}"))["database_url"][0] == MASK


def test_secrets_are_there_for_those_who_need_them() -> None:
    assert pickle.loads(pickle.dumps(HOLDS_SECRETS)) == HOLDS_SECRETS
    settings = pickle.loads(pickle.dumps(load_settings(storage=HOLDS_SECRETS)))
    assert settings.storages["main"].config["access_key"] == SECRET
    assert settings.source_of("storages", "main") == "argument"


def test_no_error_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDR_STORAGE__CONFIG__SECRET_KEY", SECRET)
    monkeypatch.setenv("BDR_DATABASE_URLS", SECRET)
    monkeypatch.setenv("BDR_DATABASE_URL__PASSWORD", SECRET)
    options = {"region": "r", "password": [SECRET]}
    lines = refusal(storages={"a": {"storage_type": "s3", "config": options, "access_key": SECRET}})
    assert sorted(line.split(": ")[0] for line in lines if SECRET not in line) == [
        "BDR_DATABASE_URLS",
        "BDR_DATABASE_URL__PASSWORD",
        "storages.a.access_key",
        "storages.a.config",
        "storages.main.storage_type",
    ]


def test_settings_do_not_change() -> None:
    settings = load_settings()
    for frozen, name in ((settings, "namespace"), (settings.reaper, "lease")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(frozen, name, None)
