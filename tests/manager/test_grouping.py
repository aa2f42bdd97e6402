"""Who goes with which group."""

import asyncio

from bdr.manager.grouping import WORTH, Ask, Groups

Asked = Ask[int, None]


class Held:
    """Groups that are under way until they may end, two at once; what each sends is kept."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []
        self.asks: list[Asked] = []
        self.groups: Groups[int, None] = Groups(self._commit, at_once=2)
        self._may_end: list[asyncio.Event] = []

    async def add(self, *keys: str) -> None:
        """Ask for these, in this order, and let what can go, go."""
        for key in keys:
            self.asks.append(Ask(len(self.asks), key, "Asking"))
            self.groups.add(self.asks[-1])
        await self._turns()

    async def end(self, group: int) -> None:
        """Let a group end, and another go."""
        self._may_end[group].set()
        await self._turns()

    async def end_all(self) -> None:
        """Let all end."""
        closing = asyncio.create_task(self.groups.close())
        while not closing.done():
            for group in range(len(self.sent)):
                await self.end(group)

    async def _commit(self, asks: list[Asked]) -> None:
        self.sent.append([ask.item for ask in asks])
        self._may_end.append(asyncio.Event())
        await self._may_end[-1].wait()
        for ask in asks:
            ask.give(None)

    async def _turns(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)


async def test_who_was_passed_by_because_of_others_goes_in_the_order_in_which_all_came() -> None:
    held = Held()
    await held.add("hot")
    await held.add(*(key for number in range(2 * WORTH) for key in (f"cold-{number}", "hot")))
    first, beside = held.sent
    # Every second one; those between them wait for the hot one that is under way.
    assert first == [0]
    assert beside == list(range(1, 2 * len(beside), 2))
    assert WORTH <= len(beside) < 2 * WORTH
    await held.end(0)
    left = sorted(set(range(1, len(held.asks))) - set(beside))
    assert held.sent[2] == left[: len(held.sent[2])]
    await held.end_all()
    assert sorted(item for group in held.sent for item in group) == list(range(len(held.asks)))
    assert all(ask.is_over for ask in held.asks)
