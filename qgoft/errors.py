"""What goes wrong because of what came in, told in one line: what came, what is allowed, what to do."""

import difflib
import errno
from collections.abc import Iterable

# What a full disk, a quota, or a folder that may not be written to answers.
DISK_ERRORS = (
    errno.ENOSPC,
    errno.EROFS,
    errno.EDQUOT,
    errno.EACCES,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EEXIST,
)


class QgoftError(Exception):
    """A mistake in the input. Commands print its one line and leave with an exit code that is not 0."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Diverged(ArithmeticError):
    """A loss, a gradient or a prediction is no longer finite."""


def format_exception(error: BaseException) -> str:
    """Kind and text of an error of somebody else's."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def hint(value: str, known: Iterable[str]) -> str:
    """Return `; did you mean NAME?` for the nearest known name, or nothing."""
    near = difflib.get_close_matches(value.lower(), {name.lower() for name in known}, n=1, cutoff=0.6)
    return f"; did you mean {next(name for name in known if name.lower() == near[0])}?" if near else ""


def check_choice(kind: str, value: str, allowed: list[str], advice: str) -> None:
    """Refuse a value that is not among the allowed ones.

    Raises:
        QgoftError: naming the value, everything that is allowed, and what to do.
    """
    if value not in allowed:
        raise QgoftError(f"unknown {kind} {value!r}; allowed are {', '.join(sorted(allowed))}; {advice}{hint(value, allowed)}")
