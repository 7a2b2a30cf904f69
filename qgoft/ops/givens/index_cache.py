"""Cache of index tensors that depend on shapes only."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._guards import detect_fake_mode

P = ParamSpec("P")
T = TypeVar("T")


def cached_index(function: Callable[P, T]) -> Callable[P, T]:
    """Cache the result by the arguments, outside inference mode so that training can use it. Under a compiler it is recomputed."""
    kept: Callable[P, T] = functools.lru_cache(maxsize=256)(torch.inference_mode(False)(function))  # type: ignore[assignment]

    @functools.wraps(function)
    def get(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or detect_fake_mode() is not None:  # a fake tensor must not be cached for real calls
            return function(*args, **kwargs)
        return kept(*args, **kwargs)

    return get
