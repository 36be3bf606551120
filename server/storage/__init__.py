"""Durable state: one contract over memory, SQLite and PostgreSQL, with blobs beside it."""
