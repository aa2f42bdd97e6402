from pathlib import Path

from tests.cli.programs import Command, Inside
from tests.fixtures.storages import free_ports


async def test_doctor_has_a_line_for_everything_that_has_to_be_right(inside: Inside, key: str) -> None:
    examined = await inside("doctor")
    assert (examined.code, examined.errors) == (0, "")
    assert {cells[0]: cells[1] for cells in examined.cells} == {
        "settings": "ok",
        "versions": "note",
        "database": "ok",
        "clock": "note",
        "schema": "ok",
        "storage main": "ok",
    }
    quick = (await inside("doctor", "--quick", "--json")).json
    assert [one["subject"] for one in quick] == ["settings", "database", "schema"]


async def test_doctor_says_what_to_do_about_what_is_wrong(
    command: Command, inside: Inside, empty_database_url: str
) -> None:
    unmigrated = await inside("doctor", BDR_DATABASE_URL=empty_database_url)
    assert (unmigrated.code, unmigrated.cells[-1][:2]) == (1, ["schema", "wrong"])
    assert unmigrated.cells[-1][2].endswith("has no catalog yet; run `bdr db upgrade`.")
    down = f"postgresql://user:hidden@127.0.0.1:{free_ports(1)[0]}/db"
    unreachable = await inside("doctor", "--quick", BDR_DATABASE_URL=down)
    assert (unreachable.code, unreachable.cells[-1][:2]) == (1, ["database", "wrong"])
    assert "cannot be reached" in unreachable.cells[-1][2]
    misspelt = await inside("doctor", BDR_REAPER__LEESE="1h")
    assert (misspelt.code, misspelt.cells) == (
        1,
        [["settings", "wrong", "BDR_REAPER__LEESE: there is no setting `LEESE`; did you mean `LEASE`?"]],
    )
    assert "hidden" not in unreachable.text + unreachable.errors
    assert (await command("doctor", "--quick", BDR_DATABASE_URL=empty_database_url)).code == 1


async def test_config_show_gives_value_and_source_without_secrets(inside: Inside, command: Command) -> None:
    (command.folder / "bdr.toml").write_text('[lifecycle]\ncleanup_interval = "90s"\n')
    secrets = {
        "BDR_DATABASE_URL": "postgresql://user:hidden@h/db",
        "BDR_STORAGES__S3__STORAGE_TYPE": "s3",
        "BDR_STORAGES__S3__CONFIG__SECRET_KEY": "hidden",
    }
    shown = await inside("config", "show", **secrets)
    assert (shown.code, shown.errors) == (0, "")
    lines = {cells[0]: cells[1:] for cells in shown.cells}
    assert lines["lifecycle.cleanup_interval"] == ["1m30s", f"file {Path(command.folder, 'bdr.toml')}"]
    assert lines["database_url"] == ["postgresql://h/db", "environment BDR_DATABASE_URL"]
    assert lines["reaper.lease"] == ["5m", "default"]
    given = (await inside("config", "show", "--json", "--database-url", "postgres:///x", **secrets)).json
    assert {"name": "database_url", "value": "postgres:///x", "source": "argument"} in given
    assert "hidden" not in shown.text + str(given)


async def test_a_wrong_configuration_is_a_line_for_each_mistake_and_ends_with_1(command: Command) -> None:
    ended = await command("ls", BDR_TYPO="1", BDR_LIFECYCLE__MAX_RETENTION="soon")
    assert (ended.code, ended.output) == (1, b"")
    assert all(line.startswith("bdr: BDR_") for line in ended.errors.splitlines())
    assert len(ended.errors.splitlines()) == 2
