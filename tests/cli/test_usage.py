import pytest
from cyclopts import App

from bdr.cli.app import app
from tests.cli.programs import Command, Inside

COMMANDS = ["put", "get", "stat", "ls", "explain", "register", "release", "holders", "pin", "unpin", "rm"]
COMMANDS += ["reap", "reaper", "ops", "stats", "fsck", "storage", "db", "doctor", "config"]
KEY = "06h0s31vc5p61f5aip4nf6too4.txt"
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
    "--lease: 'soon' is not a length of time": ["register", KEY, "--holder", "h", "--lease", "soon"],
    "A lease of 0:00:00 is out of range": ["register", KEY, "--holder", "h", "--lease", "0"],
    "--lease belongs to a holder: give --holder, too.": ["register", KEY, "--lease", "1h"],
    "'' cannot name a holder": ["release", "--holder", ""],
    "Give the KEY of a file, or --holder to release all that it holds.": ["release"],
    "Give the KEY of a file, or --holder to see what it holds.": ["holders"],
    "KEYS requires an argument": ["pin"],
    "--resume and --repair are different things to do: give one of them.": ["fsck", "--resume", "a", "--repair", "a"],
    "--plan, --storage and --checksum are for a new check; --show has its plan already.": [
        *("fsck", "--show", "a", "--checksum"),
    ],
    "--confirm belongs to --repair.": ["fsck", "--confirm"],
    "There is no plan nowhere.": ["fsck", "--show", "nowhere"],
    "There is no plan nothing.": ["fsck", "--resume", "nothing"],
    "There is no plan neither.": ["fsck", "--repair", "neither"],
    "The plan no/a cannot be written: there is no folder no.": ["fsck", "-o", "no/a"],
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
