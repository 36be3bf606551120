"""`fedrho demo`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from fedrho import console
from fedrho.console import Stopped
from fedrho.output_options import JsonAtEnd, Quiet


class Algorithm(Enum):
    """As in `fedrho.server.tasks.ALGORITHMS`."""

    dp_ftrl = "dp-ftrl"
    dp_fedavg = "dp-fedavg"


def demo(
    algorithm: Annotated[Algorithm, typer.Option(help="How noise is spread over the steps.")] = Algorithm.dp_ftrl,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps to release.")] = 30,
    devices: Annotated[int, typer.Option(min=4, max=400, help="Devices, each with its own share of the digits.")] = 40,
    processes: Annotated[int, typer.Option(min=1, max=16, help="Client processes that the devices are spread over.")] = 3,
    rho: Annotated[float | None, typer.Option(help="zCDP budget of the whole run, per device.", show_default="10")] = None,
    alpha: Annotated[
        float, typer.Option(min=0.01, max=1000.0, help="Dirichlet concentration of the split; small is less alike.")
    ] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split of the data; never of the noise.")] = 0,
    store: Annotated[
        Path | None, typer.Option(help="Folder for the state; continues the run it holds.", show_default="a temporary one")
    ] = None,
    quiet: Quiet = False,
    json: JsonAtEnd = False,
) -> None:
    """Train a model on forty devices, here and now, and print the privacy statement that goes with it.

    Example: fedrho demo --algorithm dp-fedavg --store my-demo
    """
    from fedrho import demo as demonstration

    options = demonstration.DemoOptions(algorithm.value, steps, devices, min(processes, devices), alpha, seed, rho, store)
    try:
        result = demonstration.run_demo(options)
    except demonstration.DemoInterrupted as stopped:
        raise Stopped(str(stopped)) from None
    if json:
        console.print_json(result.as_json())
    elif not quiet:
        demonstration.print_result(result)
