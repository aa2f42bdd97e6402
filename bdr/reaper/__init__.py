"""The reaper: one idempotent pass, apart from the loop that schedules it."""

from bdr.reaper.report import ReapReport

__all__ = ["ReapReport"]
