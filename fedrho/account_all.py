"""`fedrho account` with the commands of all its files."""

from __future__ import annotations

from fedrho.account import app
from fedrho.account_audit import audit, membership
from fedrho.account_ledger import ledger

__all__ = ["app"]

for command in (ledger, audit, membership):
    app.command()(command)
