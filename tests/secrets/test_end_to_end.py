"""Real servers that ask for passwords: what bdr writes, logs and says while all is well, and when a secret is wrong."""

import asyncio
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

import bdr
from bdr import BinaryStorageConfig
from bdr.errors import BinaryStorageError
from bdr.settings import load_settings
from tests.cli.programs import Command
from tests.fixtures.postgres import GUARDED_ROLE, HOST, PostgresServer
from tests.fixtures.storages import RedisServer, S3Server, running_redis
from tests.secrets.support import everything_logged, guarded_role, told_by, written_in

# Characters that have to be escaped in a URL, in SQL and in a shell.
PASSWORD = "pa:ss/w@rd '%1"
REDIS = "re:d/is@ s3cret"
WRONG = "wr0ng-s3cret"
FORMS = ("authority", "query")


def url_of(server: PostgresServer, database_url: str, password: str, form: str) -> str:
    """The URL with the password where people put it; always percent-encoded, as it has to be."""
    place = f"{HOST}:{server.port}/{database_url.rpartition('/')[2]}"
    if form == "authority":
        return f"postgresql://{GUARDED_ROLE}:{quote(password, safe='')}@{place}"
    return f"postgresql://{place}?user={GUARDED_ROLE}&password={quote(password, safe='')}"


def spellings(*secrets: str) -> list[str]:
    """Each secret as it is, in a URL, in JSON and as Python writes it."""
    written = (str, partial(quote, safe=""), quote, lambda one: json.dumps(one)[1:-1], lambda one: repr(one)[1:-1])
    return [write(one) for one in secrets for write in written]


def found_in(text: str, *secrets: str) -> list[str]:
    return [one for one in spellings(*secrets) if one in text]


@pytest.fixture
def storages(s3_server: S3Server, password_server: RedisServer, fs_config: BinaryStorageConfig) -> dict[str, Any]:
    """One of each kind, with its secrets right."""
    endpoint = f"redis://:{quote(REDIS, safe='')}@{password_server.host}:{password_server.port}"
    return {
        "main": fs_config,
        "s3": BinaryStorageConfig(storage_type="s3", root="secrets", config=s3_server.options()),
        "redis": BinaryStorageConfig(storage_type="redis", root="secrets", config={"endpoint": endpoint}),
    }


@pytest.fixture(scope="module")
def password_server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_redis(tmp_path_factory.mktemp("valkey"), "--requirepass", REDIS) as server:
        yield server


@pytest.mark.parametrize("form", FORMS)
async def test_what_is_written_logged_and_shown_holds_no_secret_while_all_is_well(
    postgres: PostgresServer,
    database_url: str,
    storages: dict[str, Any],
    s3_server: S3Server,
    caplog: pytest.LogCaptureFixture,
    form: str,
) -> None:
    await guarded_role(database_url, GUARDED_ROLE, PASSWORD)
    url = url_of(postgres, database_url, PASSWORD, form)
    secrets = (PASSWORD, REDIS, s3_server.secret_key)
    shown: list[object] = []
    with everything_logged(caplog):
        for name in storages:
            settings = load_settings(database_url=url, storages=storages, default_storage=name)
            async with bdr.connect(settings=settings) as binary:
                key = (await binary.store_data(b"data", bdr.BinaryDataMetadata(file_name="a.txt"))).file_key
                await binary.register_reference(key, holder="node")
                assert await binary.get_data(key) == b"data"
                await binary.reap()
                engine = binary.engine
                shown += [settings, engine, engine.database, engine.database.shown, binary, *engine.storages.values()]
                shown += [one.location for one in engine.storages.values()]
                shown += [vars(await binary.get_details(key)), await binary.explain(key)]
                with pytest.raises(bdr.FileNotFound) as caught:
                    await binary.get_data("0" * 26)
                shown.append(told_by(caught.value))
                await binary.delete_data(key)
    assert len(caplog.records) > 100
    assert {"sqlalchemy.engine.Engine", "asyncio"} & {record.name for record in caplog.records}
    assert found_in(caplog.text, *secrets) == []
    assert found_in("\n".join(f"{one!s} {one!r}" for one in shown), *secrets) == []
    assert found_in(await written_in(database_url), *secrets) == []


@pytest.mark.parametrize("form", FORMS)
async def test_a_refused_database_password_is_in_no_error_and_no_log(
    postgres: PostgresServer, database_url: str, fs_config: BinaryStorageConfig, caplog: Any, form: str
) -> None:
    await guarded_role(database_url, GUARDED_ROLE, PASSWORD)
    with everything_logged(caplog), pytest.raises(bdr.PermissionDenied) as caught:
        await bdr.connect(url_of(postgres, database_url, WRONG, form), fs_config).__aenter__()
    assert found_in(told_by(caught.value) + caplog.text, WRONG) == []


@pytest.mark.parametrize("kind", ["s3", "redis"])
async def test_a_refused_secret_of_a_storage_is_in_no_error_no_log_and_no_record(
    database_url: str, storages: dict[str, Any], password_server: RedisServer, caplog: Any, kind: str
) -> None:
    endpoint = f"redis://:{WRONG}@{password_server.host}:{password_server.port}"
    wrong = {"secret_key": WRONG} if kind == "s3" else {"endpoint": endpoint}
    config = storages[kind].model_copy(update={"config": storages[kind].config | wrong})
    said = ""
    with everything_logged(caplog):
        try:
            async with bdr.connect(database_url, config) as binary:
                await binary.store_data(b"data")
        except BinaryStorageError as error:
            said = told_by(error)
    assert "storage 'main'" in said
    assert found_in(said + caplog.text + await written_in(database_url), WRONG) == []


COMMANDS = [
    ("config", "show"),
    ("doctor",),
    ("storage", "ls"),
    ("storage", "check"),
    ("ls",),
    ("put", "file"),
    ("reap",),
    ("ops",),
    ("stats",),
    ("db", "current"),
]


@pytest.mark.parametrize("form", FORMS)
async def test_the_command_shows_no_secret_whether_right_or_wrong(
    postgres: PostgresServer,
    database_url: str,
    command: Command,
    password_server: RedisServer,
    s3_server: S3Server,
    form: str,
) -> None:
    await guarded_role(database_url, GUARDED_ROLE, PASSWORD)
    (command.folder / "file").write_bytes(b"data")
    s3 = {
        "BDR_STORAGES__S3__STORAGE_TYPE": "s3",
        "BDR_STORAGES__S3__ROOT": "command",
        "BDR_STORAGES__S3__CONFIG__BUCKET": s3_server.bucket,
        "BDR_STORAGES__S3__CONFIG__ENDPOINT": s3_server.endpoint,
        "BDR_STORAGES__S3__CONFIG__ACCESS_KEY": s3_server.access_key,
    }
    place = f"{password_server.host}:{password_server.port}"
    right = s3 | {
        "BDR_DATABASE_URL": url_of(postgres, database_url, PASSWORD, form),
        "BDR_STORAGES__S3__CONFIG__SECRET_KEY": s3_server.secret_key,
        "BDR_STORAGES__REDIS__STORAGE_TYPE": "redis",
        "BDR_STORAGES__REDIS__CONFIG__ENDPOINT": f"redis://:{quote(REDIS, safe='')}@{place}",
    }
    wrong_storages = right | {
        "BDR_STORAGES__S3__CONFIG__SECRET_KEY": WRONG,
        "BDR_STORAGES__REDIS__CONFIG__ENDPOINT": f"redis://:{WRONG}@{place}",
    }
    wrong_database = right | {"BDR_DATABASE_URL": url_of(postgres, database_url, WRONG, form)}
    slots = asyncio.Semaphore(3)

    async def said(words: tuple[str, ...], settings: Any) -> str:
        async with slots:
            result = await command(*words, **settings)
        return f"{words}: {result.text}{result.errors}"

    # What is plain with the one form of the URL is JSON with the other.
    runs = enumerate(itertools.product(COMMANDS, (right, wrong_storages, wrong_database)), FORMS.index(form))
    told = await asyncio.gather(*(said((*words, *["--json"] * (number % 2)), one) for number, (words, one) in runs))
    assert len(told) == 3 * len(COMMANDS)
    leaks = [one for one in told if found_in(one, PASSWORD, REDIS, s3_server.secret_key, WRONG)]
    assert leaks == []
    assert not any("Traceback" in one for one in told)


async def test_a_running_command_shows_no_secret_to_those_who_list_processes(
    postgres: PostgresServer, database_url: str, command: Command
) -> None:
    await guarded_role(database_url, GUARDED_ROLE, PASSWORD)
    url = url_of(postgres, database_url, PASSWORD, "authority")
    async with command.running("reaper", BDR_DATABASE_URL=url) as reaper:
        await reaper.logged("Reaping what has expired in main")
        line = Path(f"/proc/{reaper.process.pid}/cmdline").read_bytes()  # noqa: ASYNC240 - it is no disk
        listed = line.decode() + await written_in(database_url)
        reaper.process.terminate()
        assert await reaper.ended() == 0
    assert "reaper" in listed
    assert found_in(listed + reaper.log, PASSWORD) == []
