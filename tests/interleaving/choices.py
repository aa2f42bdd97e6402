"""A tree of choices, walked to every leaf: the same thing is done again and again, each time decided otherwise."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Choices:
    """One way through the tree: the first choices are given, every later one is the first option."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        self._given = given
        self._taken: list[int] = []
        self._options: list[int] = []

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`, of which there is at least one; what is done must offer the same ones each time."""
        depth = len(self._taken)
        taken = self._given[depth] if depth < len(self._given) else 0
        assert taken < len(options), f"choice {depth} had more options the last time: this does not repeat itself"
        self._taken.append(taken)
        self._options.append(len(options))
        return options[taken]

    def others(self) -> Iterator[tuple[int, ...]]:
        """The ways that leave this one after what was given; followed in turn, they reach each leaf exactly once."""
        for depth in range(len(self._given), len(self._taken)):
            for other in range(1, self._options[depth]):
                yield (*self._taken[:depth], other)


def every_way() -> Iterator[Choices]:
    """All ways through a tree that is only known by walking it: walk each `Choices` before the next is asked for."""
    ahead: list[tuple[int, ...]] = [()]
    while ahead:
        choices = Choices(ahead.pop())
        yield choices
        ahead.extend(choices.others())
