"""What is measured, every few seconds: the processes from outside, the database by its own figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import asyncpg
import psutil

from tests.soak.verdict import CONNECTIONS, DEAD, FILES, LIVE, MEASURES, MEMORY, SIZE, Finding, Measure, judge

_CONNECTIONS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
_TABLES = """
    SELECT relname, n_live_tup, n_dead_tup, pg_total_relation_size(relid) AS size, autovacuum_count
    FROM pg_stat_user_tables WHERE schemaname = 'bdr' ORDER BY relname
"""


@dataclass
class Curves:
    """All that was measured: a value for each time, by measure and by what it is of."""

    times: list[float] = field(default_factory=list)
    values: dict[tuple[Measure, str], list[float]] = field(default_factory=dict)
    vacuums: dict[str, int] = field(default_factory=dict)

    async def sample(self, time: float, processes: Mapping[str, int], database: asyncpg.Connection) -> None:
        """Add a value to every curve; `processes` are pids by name."""
        self.times.append(time)
        for name, pid in processes.items():
            process = psutil.Process(pid)
            self._add(MEMORY, name, process.memory_info().rss)
            self._add(FILES, name, process.num_fds())
        self._add(CONNECTIONS, "PostgreSQL", await database.fetchval(_CONNECTIONS))
        for row in await database.fetch(_TABLES):
            for measure, column in ((LIVE, "n_live_tup"), (DEAD, "n_dead_tup"), (SIZE, "size")):
                self._add(measure, row["relname"], row[column])
            self.vacuums[row["relname"]] = row["autovacuum_count"]

    def findings(self) -> list[Finding]:
        """Each curve judged, in the order of the measures."""
        found = [judge(measure, of, self.times, values) for (measure, of), values in self.values.items()]
        return sorted(found, key=lambda one: MEASURES.index(one.measure))

    def _add(self, measure: Measure, of: str, value: float) -> None:
        self.values.setdefault((measure, of), []).append(value)
