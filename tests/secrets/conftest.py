"""The command of the tests of the command line, and nothing else of theirs."""

from tests.cli.conftest import command as command  # noqa: PLC0414 - a fixture is known by its name here
