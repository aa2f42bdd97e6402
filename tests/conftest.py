"""Fixtures of every test live in `tests/fixtures`, a module each for the databases, the storages and the engines."""

pytest_plugins = [
    "tests.fixtures.postgres",
    "tests.fixtures.storages",
    "tests.fixtures.proxy",
    "tests.fixtures.engines",
]
