"""Database URLs: every common spelling works, every mistake is named, no password is ever shown."""

from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdr.catalog import url as urls
from bdr.errors import ConfigError
from tests.fixtures.postgres import PostgresServer

SECRET = "s3cr3t"


def parse(url: str, **environment: str) -> urls.DatabaseUrl:
    return urls.parse(url, environment=environment)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
@pytest.mark.parametrize(
    "rest",
    [
        "{user}@{host}:{port}/{database}",
        "{user}@{host}:{port}/{database}?sslmode=disable",
        "{user}@{host}:{port}/{database}?sslmode=prefer&application_name=mine&connect_timeout=5",
        "{user}@{host}:{port}/{database}?options=-c%20search_path%3Dpg_catalog%20-c%20work_mem%3D5MB",
        "{user}@{host}:{port}/{database}?ssl=prefer&channel_binding=prefer&gssencmode=disable&keepalives=1",
        "{user}@/{database}?host={host}&port={port}",
        "/{database}?host={socket}&port={port}&user={user}",
        "{user}@{socket_quoted}:{port}/{database}",
        "{user}@{host}:1,{host}:{port}/{database}",
        "{user}@{host}:{port}/{database}?target_session_attrs=read-write",
        "{user}@{host}:{port}?dbname={database}",
    ],
)
async def test_spellings_connect(postgres: PostgresServer, scheme: str, rest: str) -> None:
    socket = str(postgres.socket_dir)
    parts = {"user": "postgres", "host": "127.0.0.1", "port": postgres.port, "database": "template1"}
    url = urls.parse(f"{scheme}://" + rest.format(socket=socket, socket_quoted=socket.replace("/", "%2F"), **parts))
    connection = await asyncpg.connect(url.dsn, server_settings=dict(url.session))
    try:
        assert await connection.fetchval("SELECT current_database()") == "template1"
        name = "mine" if "application_name" in rest else "bdr"
        assert await connection.fetchval("SHOW application_name") == name
        if "options" in rest:
            assert await connection.fetchval("SHOW search_path") == "pg_catalog"
            assert await connection.fetchval("SHOW work_mem") == "5MB"
    finally:
        await connection.close()


async def test_missing_parts_come_from_the_environment(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "HOST": "127.0.0.1",
        "PORT": postgres.port,
        "USER": "postgres",
        "DATABASE": "template1",
    }.items():
        monkeypatch.setenv(f"PG{name}", str(value))
    connection = await asyncpg.connect(urls.parse("postgresql://").dsn)
    assert await connection.fetchval("SELECT current_database()") == "template1"
    await connection.close()
    settings = parse("postgresql://", PGAPPNAME="theirs", PGOPTIONS="-c jit=off", PGCONNECT_TIMEOUT="7")
    assert settings.session == {"application_name": "theirs", "options": "-c jit=off"}
    assert settings.connect_timeout == timedelta(seconds=7)


def test_the_url_is_stronger_than_the_environment() -> None:
    url = parse("postgresql://h/d?application_name=a&connect_timeout=3", PGAPPNAME="b", PGCONNECT_TIMEOUT="4")
    assert url.session["application_name"] == "a"
    assert url.connect_timeout == timedelta(seconds=3)


def test_a_connect_timeout_of_zero_leaves_it_to_the_settings() -> None:
    assert parse("postgresql://h/d?connect_timeout=0").connect_timeout is None


def test_a_plus_sign_is_a_plus_sign() -> None:
    assert parse("postgresql://h/d?application_name=a+b").session["application_name"] == "a+b"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        (f"mysql://u:{SECRET}@h/d", "begin with one of postgres://"),
        (f"u:{SECRET}@h/d", "begin with"),
        (f"host=h user=u password={SECRET}", "begin with"),
        (f"jdbc:postgresql://u:{SECRET}@h/d", "begin with"),
        ("", "begin with"),
        (f"postgresql://u:{SECRET}#more@h/d", "%23"),
        (f"postgresql://u:{SECRET}@more@h/d", "%40"),
        (f"postgresql://u:1/{SECRET}@h/d", "%2F"),
        (f"postgresql://u:{SECRET}", "port is no number"),
        (f"postgresql://u:{SECRET}/d", "port is no number"),
        (f"postgresql://u:{SECRET}@h:70000/d", "from 1 to 65535"),
        (f"postgresql://u:{SECRET}@h:x/d", "from 1 to 65535"),
        (f"postgresql://u:{SECRET}@h/d?port=x", "from 1 to 65535"),
        (f"postgresql://u:{SECRET}@[h/d", "cannot be read"),
        (f"postgresql://u:{SECRET}@h/d?sslmod=require", "did you mean sslmode"),
        (f"postgresql://u:{SECRET}@h/d?statement_timeout=5", "options=-c"),
        (f"postgresql://u:{SECRET}@h/d?sslmode=yes", "verify-full"),
        (f"postgresql://u:{SECRET}@h/d?sslrootcert=/nowhere/root.crt", "which is not there"),
        (f"postgresql://u:{SECRET}@h/d?channel_binding=require", "cannot do"),
        (f"postgresql://u:{SECRET}@h/d?connect_timeout=soon", "whole number of seconds"),
        (f"postgresql://u:{SECRET}@h/d?sslmode", "name=value"),
        (f"postgresql://h/d?user=u&password={SECRET}&nonsense=1", "unknown parameter 'nonsense'"),
    ],
)
def test_mistakes_are_named_without_the_password(url: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(url)
    assert complaint in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET not in str(caught.value.__cause__)


@given(st.text())
def test_any_text_is_a_url_or_a_typed_error(text: str) -> None:
    for url in (text, f"postgresql://{text}", f"postgresql://u:{text}@h/d", f"postgresql://h/d?{text}"):
        try:
            parse(url)
        except ConfigError:
            continue


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\t\r"), min_size=1))
def test_no_password_is_shown(password: str) -> None:
    marked = f"{SECRET}{password}"
    assert SECRET not in urls.shown(f"postgresql://user:{marked}@host/database")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:pw@h:1/d?sslmode=require", "postgresql://u:***@h:1/d?sslmode=require"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("postgresql:///d?user=u&password=pw&sslpassword=x", "postgresql:///d?user=u&password=***&sslpassword=***"),
        ("host=h password='p w' user=u", "host=h password=*** user=u"),
    ],
)
def test_what_is_shown(url: str, expected: str) -> None:
    assert urls.shown(url) == expected


def test_the_value_itself_shows_no_password() -> None:
    assert SECRET not in repr(parse(f"postgresql://u:{SECRET}@h/d"))


def test_certificates_that_are_there_are_accepted(tmp_path: Path) -> None:
    root = tmp_path / "root.crt"
    root.touch()
    assert str(root) in parse(f"postgresql://h/d?sslmode=verify-full&sslrootcert={root}").dsn.replace("%2F", "/")
