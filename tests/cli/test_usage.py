import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App

from bdr.cli.app import app
from tests.cli.programs import Command, Inside

PROJECT = Path(__file__).parents[2]
COMMANDS = ["put", "get", "stat", "ls", "register", "release", "rm", "reap", "reaper", "ops", "stats"]
COMMANDS += ["storage", "db", "doctor", "config"]
WRONG = {
    "Unknown command": ["nosuch"],
    'Did you mean "put"?': ["putt"],
    "PATHS requires an argument": ["put"],
    "Unknown option: --labell. Did you mean --label?": ["put", "a", "--labell", "x=y"],
    "Standard input, -, can be stored only once.": ["put", "-", "-"],
    "--name is the name of one file; there are several.": ["put", "a", "b", "--name", "c"],
    "--label is written name=value, not 'x'.": ["put", "a", "--label", "x"],
    "--label a is given twice.": ["put", "a", "--label", "a=1", "--label", "a=2"],
    "--mime: 'nonsense' is not a MIME type": ["put", "a", "--mime", "nonsense"],
    "--namespace: at most 128 letters, digits and ._:/-": ["put", "a", "--namespace", "a b"],
    "--name: a file name has 1,025 characters": ["put", "a", "--name", "x" * 1025],
    "KEY requires an argument": ["get"],
    "Unused Tokens: ['b']": ["get", "a", "b"],
    'Invalid value "0" for --limit': ["ls", "--limit", "0"],
    'Invalid value "10001" for --limit': ["ops", "--limit", "10001"],
    "--before is a file key, which 'x' is not.": ["ls", "--before", "x"],
    "Unknown option: --nosuch": ["stats", "--nosuch"],
    "--log-level is one of debug, info, warning, error, not 'loud'.": ["ls", "--log-level", "loud"],
    "--wait: 'soon' is not a length of time": ["db", "upgrade", "--wait", "soon"],
    "There is no terminal to ask at: --yes goes back without asking.": ["db", "downgrade", "base"],
    "Can't locate revision identified by 'nosuch'": ["db", "upgrade", "--to", "nosuch"],
}


def commands_of(parent: App, *above: str) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in (name for name in parent if not name.startswith("-")):
        found += [(*above, name), *commands_of(parent[name], *above, name)]
    return found


@pytest.mark.parametrize("sentence", WRONG)
async def test_wrong_usage_is_told_in_a_sentence_and_ends_with_2(inside: Inside, sentence: str) -> None:
    ended = await inside(*WRONG[sentence])
    assert (ended.code, ended.output) == (2, b"")
    assert sentence in ended.errors
    assert all(line.startswith("bdr: ") for line in ended.errors.splitlines())


async def test_the_command_itself_ends_with_2_and_says_where_help_is(command: Command) -> None:
    ended = await command("db", "upgrade", "--nosuch")
    assert (ended.code, ended.output) == (2, b"")
    assert ended.errors == "bdr: Unknown option: --nosuch.\nbdr: `bdr db upgrade --help` shows what it takes.\n"


async def test_help_lists_the_commands_in_a_line_each_with_examples_and_exit_codes(inside: Inside) -> None:
    shown = await inside("--help")
    assert (shown.code, shown.errors) == (0, "")
    table = shown.text[shown.text.index("─ Commands ─") : shown.text.index("─ Global options ─")]
    listed = [line.strip("│ ").split()[0] for line in table.splitlines()[1:-2]]
    assert listed == [*COMMANDS, "--help", "--version"]
    assert "bdr put report.pdf --label workflow=invoices" in shown.text
    assert "2 wrong usage; 3 no such reference" in shown.text
    assert (await inside()).text == shown.text


@pytest.mark.parametrize("words", commands_of(app), ids=" ".join)
async def test_every_command_explains_itself(inside: Inside, words: tuple[str, ...]) -> None:
    shown = await inside(*words, "--help")
    assert (shown.code, shown.errors) == (0, "")
    assert shown.text.startswith(f"Usage: bdr {' '.join(words)}")
    assert "--database-url" in shown.text
    assert max(map(len, shown.text.splitlines())) <= 80


async def test_global_options_stand_anywhere(inside: Inside, empty_database_url: str) -> None:
    before = ["--database-url", empty_database_url, "ls"]
    for words in (before, ["put", "-", *before[:2]], ["put", "--json", "a", f"--database-url={empty_database_url}"]):
        ended = await inside(*words)
        assert (ended.code, ended.errors) == (
            1,
            f"bdr: {empty_database_url} has no catalog yet; run `bdr db upgrade`.\n",
        )


async def test_the_version_is_printed(command: Command) -> None:
    assert (await command("--version")).text == "0.1.0\n"


def test_help_loads_nothing_heavy() -> None:
    # The package itself, whose import is another matter, is replaced by an empty one that has its modules.
    program = """
import sys, types
package = types.ModuleType("bdr")
package.__path__ = [sys.argv[1]]
sys.modules["bdr"] = package
from bdr.cli.app import command_of
command_of(["--help"])
print(*{"sqlalchemy", "asyncpg", "opendal", "alembic", "pydantic", "apscheduler", "rich.progress"} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, PROJECT / "bdr"], capture_output=True, text=True, check=True, cwd=PROJECT
    )
    assert run.stdout == "\n"
