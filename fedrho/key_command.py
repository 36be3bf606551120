"""`fedrho keys`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrho import console
from fedrho.console import BadInput
from fedrho.work import Work


def keys(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the set goes; made if it is not there.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address by which devices reach the server. Repeatable.", show_default="this machine alone"),
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long certificates and tokens are valid.")] = 365,
    devices: Annotated[
        int, typer.Option(min=0, max=100_000, help="Tokens to make, one for one device; further ones where a set is already.")
    ] = 0,
) -> None:
    """Make a working set of keys: for server, devices, shards and operators, each its own folder.

    Example: fedrho keys certificates --host fl.example.org --devices 40
    """
    from fedrho.key_making import add_devices, holds_set, make_keys

    if devices and holds_set(folder):
        if host:
            raise BadInput(f"--host: the certificates in {folder} stay as they are; leave it out to add tokens")
        with Work("making tokens") as work:
            add_devices(folder, devices, days, work.progress)
        console.out.print(f"{folder}/devices: {devices} more tokens, one for one device", highlight=False, soft_wrap=True)
        return
    with Work("making keys") as work:
        make_keys(folder, host or (), days, devices, work.progress)
    console.out.print(
        f"{folder}: give device/ to every device and a file of devices/ to one, take offline/ off every network",
        highlight=False,
        soft_wrap=True,
    )
