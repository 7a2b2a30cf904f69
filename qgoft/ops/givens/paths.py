"""The one place where it is decided how a product is computed. Every way is exact; they differ in cost and in where they run."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# trees: pieces of rows with hand-written gradients; graph: differentiable operations alone, which a compiler can trace.
PATHS = ("trees", "graph")
_forced: list[str] = []


@contextmanager
def force_path(name: str) -> Iterator[None]:
    """Use one path whatever the input, as tests and benchmarks need it. Names are those of `PATHS`."""
    if name not in PATHS:
        raise ValueError(f"unknown path {name!r} of the Givens operator; allowed are {', '.join(PATHS)}")
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def choose_path(x: Tensor) -> str:
    """How rows like x are multiplied."""
    if _forced:
        return _forced[-1]
    return "graph" if torch.compiler.is_compiling() else "trees"


def goes_through_weight(rows: int, outputs: int) -> bool:
    """Whether W (R x) is computed as (W R) x. A turned row costs the same on either side, so the side with fewer rows is turned."""
    return outputs <= rows


def can_share(parameter: Tensor) -> bool:
    """Whether the factors of a layer may be kept between calls: not while a compiler traces, and only where comparing values with those
    the factors were made from does not wait for a device."""
    return choose_path(parameter) == "trees" and parameter.device.type == "cpu" and type(parameter) in (Tensor, torch.nn.Parameter)
