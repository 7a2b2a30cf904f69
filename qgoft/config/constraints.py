"""Types and constraints of settings."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Strict
from pydantic_core import PydanticCustomError

# Names become file names, labels and arguments of commands.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,@+=-]{0,99}")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

Int = Annotated[int, Strict()]
Float = Annotated[float, Strict()]
Str = Annotated[str, Strict()]
Bool = Annotated[bool, Strict()]


def _validator(accepts: Callable[[Any], bool], expected: str) -> AfterValidator:
    def check(value: Any) -> Any:
        if not accepts(value):
            raise PydanticCustomError("range", "{expected}", {"expected": expected})
        return value

    return AfterValidator(check)


def between(low: float, high: float) -> AfterValidator:
    """Constrain a number to a range, both ends included."""
    return _validator(lambda value: low <= value <= high, f"allowed are {low:,} to {high:,}")


def one_of(*names: str) -> AfterValidator:
    """Constrain a text to some names."""
    return _validator(lambda value: value in names, f"allowed are {', '.join(names)}")


def _finite_options(value: Any) -> Any:
    if any(isinstance(one, float) and not math.isfinite(one) for one in value.values()):
        name, number = next((n, one) for n, one in value.items() if isinstance(one, float) and not math.isfinite(one))
        raise PydanticCustomError("finite_number", "{option}", {"option": name, "number": str(number)})
    return value


POSITIVE = _validator(lambda value: value > 0, "allowed are positive numbers")
RATE = _validator(lambda value: 0 <= value < 1, "allowed are 0 and more, below 1")
_NAME = _validator(lambda value: bool(NAME.fullmatch(value)), "letters, digits and _ . , @ + = - are allowed, 100 at most")
SIZE = between(1, 10**6)
Name = Annotated[Str, _NAME]
Options = Annotated[dict[str, Any], AfterValidator(_finite_options)]
