"""What `_compiled.c` offers; `kernels.py` describes it."""

from typing import Any

from numpy.typing import NDArray

def copy(target: NDArray[Any], source: NDArray[Any]) -> tuple[float, bool]: ...
def add(lane: NDArray[Any], vectors: list[NDArray[Any]]) -> None: ...
