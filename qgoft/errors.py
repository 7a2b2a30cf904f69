"""User errors: one line with the value, the accepted values and the fix."""

import difflib
import errno
from collections.abc import Iterable

# Raised for a full disk, a quota, or a directory without write permission.
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


# How to install the experiments where only the adapter is installed.
INSTALL = "pip install '.[suite]' in a checkout of qgoft"


class QgoftError(Exception):
    """Error in the user's input. Commands print it as one line and exit with a non-zero code."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class Diverged(ArithmeticError):
    """A loss, a gradient or a prediction is not finite."""


def format_exception(error: BaseException) -> str:
    """Return the type and text of an exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:400]


def hint(value: str, known: Iterable[str]) -> str:
    """Return ` (did you mean NAME?)` for the closest known name, or an empty string."""
    near = difflib.get_close_matches(value.lower(), {name.lower() for name in known}, n=1, cutoff=0.6)
    return f" (did you mean {next(name for name in known if name.lower() == near[0])}?)" if near else ""


def check_choice(kind: str, value: str, allowed: list[str], advice: str) -> None:
    """Raise unless a value is one of the allowed ones.

    Raises:
        QgoftError: names the value, the allowed values and the fix.
    """
    if value not in allowed:
        raise QgoftError(f"unknown {kind} {value!r}{hint(value, allowed)}; allowed are {', '.join(sorted(allowed))}; {advice}")


class RecordError(ValueError):
    """A record or an archive of records is invalid."""
