"""The fixtures of the lifecycle's tests, for the other side of the same races."""

from tests.lifecycle.conftest import caller, connect_through

__all__ = ["caller", "connect_through"]
