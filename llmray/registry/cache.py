"""Results of steps by cache key, and the leases that keep two runs from computing the same one twice.

A lease is a promise with an end: whoever holds it works on the key, and renews it while at work. A holder that died
loses it when its time is over. One statement takes it, so of many that ask at once one gets it.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, or_, select, update

from llmray.registry import schema
from llmray.registry.database import Part, affected, upsert
from llmray.registry.records import CacheEntry


class Cache(Part):
    def cache_get(self, key: str) -> CacheEntry | None:
        with self._db.read() as connection:
            row = connection.execute(select(schema.cache).filter_by(key=key)).first()
            return None if row is None else CacheEntry(**row._mapping)

    def cache_put(self, key: str, *, step: str, fields: Mapping[str, str], outputs: Mapping[str, Any]) -> None:
        """Keep a step's outputs under its key; what was there before is replaced."""
        row = {"key": key, "step": step, "fields": fields, "outputs": outputs, "created_at": self._db.now()}
        with self._db.write() as connection:
            upsert(connection, schema.cache, row)

    def cache_entries(self, step: str, limit: int = 20) -> list[CacheEntry]:
        """The newest entries of a step, newest first."""
        table = schema.cache
        query = select(table).filter_by(step=step).order_by(table.c.created_at.desc(), table.c.key).limit(limit)
        with self._db.read() as connection:
            return [CacheEntry(**row._mapping) for row in connection.execute(query)]

    def acquire_lease(self, key: str, owner: str, ttl_s: float, now: datetime | None = None) -> bool:
        """Take a lease that is free, over, or the owner's already; returns whether it is the owner's now."""
        moment = now or self._db.now()
        row = {"key": key, "owner": owner, "expires_at": moment + timedelta(seconds=ttl_s)}
        free = or_(schema.leases.c.expires_at <= moment, schema.leases.c.owner == owner)
        with self._db.write() as connection:
            return upsert(connection, schema.leases, row, where=free)

    def renew_lease(self, key: str, owner: str, ttl_s: float, now: datetime | None = None) -> bool:
        """Hold on to a lease; returns False if it is over or another's: stop working."""
        moment = now or self._db.now()
        held = update(schema.leases).filter_by(key=key, owner=owner).where(schema.leases.c.expires_at > moment)
        with self._db.write() as connection:
            return affected(connection, held.values(expires_at=moment + timedelta(seconds=ttl_s))) == 1

    def lease_owner(self, key: str) -> str | None:
        """Who took a lease last and has not given it back, over or not; None if it is free."""
        with self._db.read() as connection:
            return connection.execute(select(schema.leases.c.owner).filter_by(key=key)).scalar()

    def release_lease(self, key: str, owner: str) -> None:
        """Give a lease back; nothing happens if it is not the owner's."""
        with self._db.write() as connection:
            affected(connection, delete(schema.leases).filter_by(key=key, owner=owner))
