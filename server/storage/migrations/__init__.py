"""Brings the tables of an older store up to `schema`, by Alembic; versions/ has one file a revision."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from fedrho.server.release import StoreConflict
from fedrho.server.storage.schema import HEAD

FIRST = "0001"
FIRST_USER_VERSION = 2
"""How SQLite folders of revision 0001 say what they are; Alembic's own table came with 0002."""


def revision(connection: sa.Connection, shown: str) -> str | None:
    """What the tables are, None for no tables; raises StoreConflict for what this program does not know."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return _before_alembic(connection, shown)
    found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    if found not in (None, FIRST, HEAD):
        raise StoreConflict(f"{shown}: written by a newer version of fedrho (revision {found}); update fedrho")
    return found


def upgrade(connection: sa.Connection, shown: str, before: str | None) -> None:
    """From revision `before` to HEAD, within the transaction of `connection`."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    if before == FIRST and not sa.inspect(connection).has_table("alembic_version"):
        command.stamp(config, FIRST)
    try:
        command.upgrade(config, HEAD)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreConflict(f"{shown}: its tables cannot be brought up to date ({type(error).__name__}: {error})") from error


def _before_alembic(connection: sa.Connection, shown: str) -> str | None:
    if connection.dialect.name != "sqlite":
        return None
    version = connection.exec_driver_sql("PRAGMA user_version").scalar()
    if version not in (0, FIRST_USER_VERSION):
        raise StoreConflict(f"{shown}: written by another version of fedrho (schema {version})")
    return FIRST if version == FIRST_USER_VERSION else None
