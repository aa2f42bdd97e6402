"""What the README says of the settings is what the settings are, and every test that a page names is there."""

import re
from pathlib import Path

from bdr.settings import describe_settings, load_settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
# Their defaults depend on the machine, or say what None does.
TOLD_IN_WORDS = {"database_url", "data_dir", "migrate_on_start", "instance.name"}


def documented() -> dict[str, str]:
    table = README.read_text().partition("<!-- settings: begin -->")[2].partition("<!-- settings: end -->")[0]
    return dict(re.findall(r"^\| `([^`]+)` \|\s*([^|]*?)\s*\|", table, re.MULTILINE))


def test_every_setting_is_documented_with_its_default() -> None:
    settings = load_settings(storage={"storage_type": "fs", "root": "/srv"})
    lines = {line.name.replace("storages.main.", "storages.NAME."): line for line in describe_settings(settings)}
    told = documented()
    assert list(told) == list(lines)
    defaults = {name: line.value for name, line in lines.items() if line.source == "default"}
    wrong = {
        name: value
        for name, value in defaults.items()
        if name not in TOLD_IN_WORDS and value != (told[name] or "unset")
    }
    assert wrong == {}


def test_every_test_that_the_reliability_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/reliability.md").read_text())
    assert len(named) > 50
    there = {file: re.findall(r"^(?:async )?def (\w+)", (ROOT / file).read_text(), re.MULTILINE) for file, _ in named}
    assert [f"{file}::{test}" for file, test in named if test not in there[file]] == []
