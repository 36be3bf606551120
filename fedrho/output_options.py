"""The options of every command that say how much is said, and to whom."""

from __future__ import annotations

from typing import Annotated

import typer

from fedrho import console

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.", callback=console.plain)]
JsonAtEnd = Annotated[bool, typer.Option("--json", help="One JSON object on standard output at the end.", callback=console.plain)]
Quiet = Annotated[bool, typer.Option("--quiet", help="Say nothing but errors.", callback=console.silent)]
