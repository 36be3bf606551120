"""Claimed against found epsilon, over a range of claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedrho.drawing import GREY, MARKERS, look
from fedrho.plots import picture
from fedrho.privacy.labels.audit import LabelAudit

SHOWN = {
    "exact matrix": "exact matrix",
    "one run": "proved by the audit in one run",
    "likelihood ratio": "proved by the likelihood-ratio attack",
}


def claimed_and_found(path: Path, audits: Sequence[LabelAudit]) -> None:
    """A line for each way to find an epsilon; on the diagonal it is what was claimed, above it the claim is false."""
    claims = [one.epsilon for one in audits if one.epsilon is not None]
    most = max(claims) * 1.06
    title = f"Claimed and found: {audits[0].mechanism}"
    with picture(path, title, "epsilon claimed (one label, substitution)", "epsilon found") as axes:
        axes.fill_between([0, most], [0, most], [most, most], color="#EFEFEF", linewidth=0)
        axes.plot([0, most], [0, most], color=GREY, linewidth=1, linestyle=":", label="found = claimed")
        for place, (check, name) in enumerate(SHOWN.items()):
            found = [finding.found for one in audits for finding in one.findings if finding.check == check]
            axes.plot(
                claims, np.minimum(found, most), label=name, marker=MARKERS[place], markersize=5, linewidth=1.6, **look(place)
            )
        axes.set(xlim=(0, most), ylim=(0, most))
        axes.annotate("the claim is false", (0, most), (8, -8), textcoords="offset points", va="top", color=GREY)
        axes.legend(frameon=False, loc="lower right")
