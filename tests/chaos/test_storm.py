"""A minute of a storm: see `storm`. A longer one is `./scripts/chaos --minutes N --seed S`."""

import pytest

from tests.chaos.storm import weather
from tests.chaos.test_steps import given
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.storages import MakeStorageConfig


# The judgement reads all that was stored; only a machine that stands still takes so long for all of it.
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("kind", "seconds", "seed"), [("fs", 40, 1), ("redis", 20, 2)])
async def test_what_was_acknowledged_is_there_to_the_last_count_after_a_storm(
    private_postgres: PostgresServer, make_storage_config: MakeStorageConfig, kind: str, seconds: float, seed: int
) -> None:
    template = await private_postgres.migrated_template()
    url = private_postgres.url(await private_postgres.create_database(template))
    report = await weather(private_postgres, url, given(make_storage_config(kind)), seconds, seed)
    assert report.violations == [], str(report)
    assert report.acknowledged
    assert report.blows
