"""What the README says of the settings is what the settings are."""

import re
from pathlib import Path

from bdr.settings import describe_settings, load_settings

README = Path(__file__).parents[2] / "README.md"
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
