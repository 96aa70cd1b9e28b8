"""The registry as its users see it: one object, flat methods, each one short transaction.

The methods live with their nouns (runs, artifacts, aliases …); this file only puts them together and opens the door.
Rejected: one repository object a noun (`registry.runs.start(…)`): transactions cross nouns, a promotion for one.
"""

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self

from llmray.registry.access import Access
from llmray.registry.artifacts import Artifacts
from llmray.registry.cache import Cache
from llmray.registry.database import Database, default_url
from llmray.registry.ledger import Ledger
from llmray.registry.lineage import Lineage
from llmray.registry.outputs import Outputs
from llmray.registry.prompts import Prompts
from llmray.registry.runs import Runs


def utc_now() -> datetime:
    return datetime.now(UTC)


def random_id() -> str:
    return uuid.uuid4().hex


class Registry(Runs, Artifacts, Lineage, Prompts, Outputs, Cache, Ledger, Access):
    """The memory of llmray. Thread-safe; several processes may each have their own on one database.

    Open it in the process that uses it: a connection survives neither pickling nor a fork.
    """

    @classmethod
    def open(
        cls,
        url: str | None = None,
        *,
        clock: Callable[[], datetime] = utc_now,
        new_id: Callable[[], str] = random_id,
        busy_timeout_s: float = 30.0,
    ) -> Self:
        """Open the database at the newest schema, made or migrated first where needed.

        Args:
            url: `sqlite:///path` or `postgresql://…`; `$LLMRAY_DATABASE_URL` or a file in the local home by default.
            clock: where moments come from, timezone-aware.
            new_id: where ids of runs, steps and events come from.
            busy_timeout_s: how long a SQLite writer waits for its turn.

        Raises:
            ConfigError: no such kind of database, or its schema is newer than this llmray.
            UnavailableError: the database does not answer, or cannot be written.
        """
        return cls(Database(url or default_url(), clock=clock, new_id=new_id, busy_timeout_s=busy_timeout_s))

    @property
    def url(self) -> str:
        """Where the database is, password hidden."""
        return str(self._db)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
