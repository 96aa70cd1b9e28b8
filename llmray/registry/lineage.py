"""Lineage: what was made from what. Nodes are digests and output ids; a cycle, should one be written, does no harm."""

from collections.abc import Iterable

from sqlalchemy import Column, Connection, select

from llmray.registry import schema
from llmray.registry.database import Database, Part, insert_new
from llmray.registry.records import Edge

_PAGE = 500
"""Nodes asked about in one query."""


class Lineage(Part):
    def link(self, child: str, parent: str, role: str, run_id: str | None = None) -> None:
        """Record that `child` was made from `parent`; the same edge twice is one edge."""
        with self._db.write() as connection:
            write_edges(self._db, connection, [Edge(child=child, parent=parent, role=role)], run_id)

    def ancestors(self, digest: str) -> list[Edge]:
        """Every edge above: what it was made from, what that was made from, and so on, nearest first."""
        return self._walk(digest, schema.lineage.c.child, "parent")

    def descendants(self, digest: str) -> list[Edge]:
        """Every edge below: what was made from it, nearest first."""
        return self._walk(digest, schema.lineage.c.parent, "child")

    def _walk(self, digest: str, at: Column[str], towards: str) -> list[Edge]:
        found: dict[Edge, None] = {}
        seen, level = {digest}, [digest]
        table = schema.lineage
        with self._db.read() as connection:
            while level:
                edges = [
                    Edge(child=row.child, parent=row.parent, role=row.role)
                    for start in range(0, len(level), _PAGE)
                    for row in connection.execute(
                        select(table)
                        .where(at.in_(level[start : start + _PAGE]))
                        .order_by(table.c.created_at, table.c.child, table.c.role, table.c.parent)
                    )
                ]
                found.update(dict.fromkeys(edges))
                level = [node for node in dict.fromkeys(getattr(edge, towards) for edge in edges) if node not in seen]
                seen.update(level)
        return list(found)


def write_edges(database: Database, connection: Connection, edges: Iterable[Edge], run_id: str | None) -> None:
    rows = [
        {
            "child": edge.child,
            "parent": edge.parent,
            "role": edge.role,
            "run_id": run_id,
            "created_at": database.now(),
        }
        for edge in edges
    ]
    insert_new(connection, schema.lineage, rows)
