"""Alembic migrations. A released one is never edited: a change to the tables is a new file in `versions/`."""
