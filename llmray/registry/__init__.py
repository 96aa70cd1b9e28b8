"""The registry: what ran, what it made, from what, who uses which version, and what people thought of it.

One database holds runs and their steps, artifacts and their lineage, aliases and every move of them, prompts, outputs,
feedback, the cache with its leases, spend, events, and who may do what. `Registry.open()` brings the database to the
newest schema and gives one flat object; each method is one short transaction and returns plain frozen records. SQLite
is enough for one machine, PostgreSQL serves many; both pass the same tests.
"""
