"""What `./scripts/demo` runs. `engines` is the part to read for how bdr is used; `proof` does not trust it."""

from collections.abc import Sequence


class Trouble(Exception):
    """Something is not as bdr promises; the text names what, a line each."""


# Of many cases of one kind, so many are named.
NAMED = 3


def shortened(sentences: Sequence[str]) -> list[str]:
    """The first few of many sentences of one kind, and how many more there are."""
    more = len(sentences) - NAMED
    return [*sentences[:NAMED], *[f"... and {more:,} more like this"] * (more > 0)]


def printable(text: str) -> str:
    """The text without what could move a terminal's cursor, break a line, or has no character at all."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
