"""Index tables that depend on shapes alone: made once, kept, and made anew inside a compiler's trace, which cannot look into a cache."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch._guards import detect_fake_mode

P = ParamSpec("P")
T = TypeVar("T")


def cached_index(function: Callable[P, T]) -> Callable[P, T]:
    """Cache the result by the arguments. Made outside inference mode, so that it may be used in training later."""
    kept: Callable[P, T] = functools.lru_cache(maxsize=256)(torch.inference_mode(False)(function))  # type: ignore[assignment]

    @functools.wraps(function)
    def get(*args: P.args, **kwargs: P.kwargs) -> T:
        if torch.compiler.is_compiling() or detect_fake_mode() is not None:  # a fake table would be kept for real calls
            return function(*args, **kwargs)
        return kept(*args, **kwargs)

    return get
