"""The tables, as SQLAlchemy Core metadata: what the newest migration leads to.

A test compares this with what the migrations make, on both databases. Tables that people read in order of arrival have
an integer `seq`. Lineage has no foreign keys: prompts, outputs and outside sources are nodes too. Rejected: the ORM (an
identity map and lazy loading, for records that are read once and never changed in place).
"""

from sqlalchemy import JSON as _JSON
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    true,
)

from llmray.registry.columns import FreeText, UtcTime

HEAD = "0003"
"""Newest migration; a test holds it to the migrations folder."""
VERSION_TABLE = "llmray_schema"

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

JSON = _JSON(none_as_null=True)
SEQ = BigInteger().with_variant(Integer, "sqlite")
"""SQLite counts up by itself only in a column that is declared exactly INTEGER."""

projects = Table(
    "projects",
    metadata,
    Column("name", FreeText, primary_key=True),
    Column("created_at", UtcTime, nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
)

members = Table(
    "members",
    metadata,
    Column("project", FreeText, ForeignKey("projects.name"), primary_key=True),
    Column("user", FreeText, primary_key=True),
    Column("role", FreeText, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", FreeText, primary_key=True),
    Column("digest", FreeText, nullable=False),
    Column("project", FreeText, nullable=False),
    Column("user", FreeText, nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
    ForeignKeyConstraint(["project", "user"], ["members.project", "members.user"]),
)

runs = Table(
    "runs",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("id", FreeText, nullable=False, unique=True),
    Column("name", FreeText, nullable=False),
    Column("project", FreeText, ForeignKey("projects.name"), nullable=False),
    Column("actor", FreeText),
    Column("owner", FreeText),
    Column("status", FreeText, nullable=False),
    Column("config", JSON, nullable=False),
    Column("started_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("error", FreeText),
)

step_runs = Table(
    "step_runs",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("id", FreeText, nullable=False, unique=True),
    Column("run_id", FreeText, ForeignKey("runs.id"), nullable=False, index=True),
    Column("step", FreeText, nullable=False, index=True),
    Column("key", FreeText, nullable=False),
    Column("fields", JSON, nullable=False),
    Column("status", FreeText, nullable=False),
    Column("outputs", JSON),
    Column("started_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("seconds", Float),
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("digest", FreeText, nullable=False, unique=True),
    Column("kind", FreeText, nullable=False, index=True),
    Column("uri", FreeText, nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("run_id", FreeText, ForeignKey("runs.id")),
    Column("created_at", UtcTime, nullable=False),
)

names = Table(
    "names",
    metadata,
    Column("kind", FreeText, primary_key=True),
    Column("name", FreeText, primary_key=True),
    Column("created_at", UtcTime, nullable=False),
)

versions = Table(
    "versions",
    metadata,
    Column("kind", FreeText, primary_key=True),
    Column("name", FreeText, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", FreeText, ForeignKey("artifacts.digest"), nullable=False, index=True),
    Column("run_id", FreeText, ForeignKey("runs.id")),
    Column("created_at", UtcTime, nullable=False),
    ForeignKeyConstraint(["kind", "name"], ["names.kind", "names.name"]),
)

lineage = Table(
    "lineage",
    metadata,
    Column("child", FreeText, primary_key=True),
    Column("parent", FreeText, primary_key=True),
    Column("role", FreeText, primary_key=True),
    Column("run_id", FreeText, ForeignKey("runs.id")),
    Column("created_at", UtcTime, nullable=False),
    Index(None, "parent"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("kind", FreeText, primary_key=True),
    Column("name", FreeText, primary_key=True),
    Column("alias", FreeText, primary_key=True),
    Column("digest", FreeText, nullable=False),
    Column("weights", JSON),
    Column("updated_at", UtcTime, nullable=False),
    ForeignKeyConstraint(["kind", "name"], ["names.kind", "names.name"]),
)

alias_events = Table(
    "alias_events",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("kind", FreeText, nullable=False),
    Column("name", FreeText, nullable=False),
    Column("alias", FreeText, nullable=False),
    Column("type", FreeText, nullable=False),
    Column("digest", FreeText),
    Column("weights", JSON),
    Column("previous", FreeText),
    Column("actor", FreeText, nullable=False),
    Column("reason", FreeText, nullable=False),
    Column("evidence", JSON),
    Column("at", UtcTime, nullable=False),
    Index(None, "name", "alias"),
)

prompts = Table(
    "prompts",
    metadata,
    Column("name", FreeText, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", FreeText, nullable=False, index=True),
    Column("messages", JSON, nullable=False),
    Column("variables", JSON, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("message", FreeText, nullable=False),
    Column("author", FreeText, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

outputs = Table(
    "outputs",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("id", FreeText, nullable=False, unique=True),
    Column("at", UtcTime, nullable=False, index=True),
    Column("prompt_digest", FreeText, index=True),
    Column("prompt_reference", FreeText),
    Column("variables", JSON, nullable=False),
    Column("messages", JSON, nullable=False),
    Column("completion", FreeText, nullable=False),
    Column("finish_reason", FreeText, nullable=False),
    Column("model_digest", FreeText, nullable=False, index=True),
    Column("variant", FreeText, nullable=False),
    Column("quantization", FreeText, nullable=False),
    Column("engine", FreeText, nullable=False),
    Column("sampling", JSON, nullable=False),
    Column("prompt_tokens", Integer, nullable=False),
    Column("completion_tokens", Integer, nullable=False),
    Column("ttft_s", Float),
    Column("latency_s", Float, nullable=False),
    Column("adapter", FreeText),
    Column("choice", Integer, nullable=False, server_default="0"),
    Column("request_id", FreeText, index=True),
    Column("documents", JSON, nullable=False, server_default="[]"),
    Column("project", FreeText),
    Column("key_id", FreeText),
    Column("cost", Float),
    Column("cached_tokens", Integer, nullable=False, server_default="0"),
    Column("text_kept", Boolean, nullable=False, server_default=true()),
    Column("shadow_of", FreeText),
)

feedback = Table(
    "feedback",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("id", FreeText, nullable=False, unique=True),
    Column("output_id", FreeText, ForeignKey("outputs.id"), nullable=False, index=True),
    Column("kind", FreeText, nullable=False),
    Column("value", JSON, nullable=False),
    Column("other_output_id", FreeText, ForeignKey("outputs.id")),
    Column("source", FreeText, nullable=False),
    Column("rule", FreeText),
    Column("at", UtcTime, nullable=False),
)

cache = Table(
    "cache",
    metadata,
    Column("key", FreeText, primary_key=True),
    Column("step", FreeText, nullable=False, index=True),
    Column("fields", JSON, nullable=False),
    Column("outputs", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("key", FreeText, primary_key=True),
    Column("owner", FreeText, nullable=False),
    Column("expires_at", UtcTime, nullable=False),
)

spend = Table(
    "spend",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("run_id", FreeText, ForeignKey("runs.id"), nullable=False, index=True),
    Column("step", FreeText, nullable=False),
    Column("core_seconds", Float, nullable=False),
    Column("gpu_seconds", Float, nullable=False),
    Column("money", Float, nullable=False),
    Column("at", UtcTime, nullable=False),
)

events = Table(
    "events",
    metadata,
    Column("seq", SEQ, primary_key=True),
    Column("id", FreeText, nullable=False, unique=True),
    Column("kind", FreeText, nullable=False, index=True),
    Column("subject", FreeText, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("at", UtcTime, nullable=False),
)
