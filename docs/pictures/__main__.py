"""The pictures of the concept pages, drawn anew: `python docs/pictures`, or `python docs/pictures FOLDER` for another place."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from charts import attacker, running_sums, two_worlds
from diagrams import clipping, label, learning, one_round, participation, trust

PICTURES: Mapping[str, Callable[[], str]] = {
    "idea-learning": learning,
    "idea-round": one_round,
    "idea-clipping": clipping,
    "idea-noise": two_worlds,
    "idea-running-sums": running_sums,
    "idea-participation": participation,
    "idea-attacker": attacker,
    "idea-label": label,
    "trust-boundaries": trust,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "images"
    for name, draw in PICTURES.items():
        (folder / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
