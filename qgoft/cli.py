"""Command line: one-line errors and exit codes."""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from qgoft.config.locations import check_configs
from qgoft.console import guard_output
from qgoft.errors import DISK_ERRORS, QgoftError, RecordError


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line, like all other user errors."""

    def error(self, message: str) -> NoReturn:
        # make passes most options, so the message names the make variable.
        message = re.sub(r"argument --([a-z]+)", lambda found: f"argument --{found[1]} ({found[1].upper()} of make)", message)
        raise QgoftError(f"{message}; `{'' if self.prog.startswith('qgoft') else 'python '}{self.prog} --help` lists what there is")


def exit_code(stop: KeyboardInterrupt) -> int:
    """Return the exit code of a shell: 128 plus the signal number, which is 2 for Ctrl-C."""
    return 128 + int(getattr(stop, "number", 2))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a user error, or a failing disk, as one line and exit with code 2."""
    try:
        yield
    except (QgoftError, RecordError) as error:
        print(f"qgoft: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        file = error.filename or "a file"  # a failing write() names no file
        print(f"qgoft: cannot open or write {file}: {error.strerror}; free space or choose another directory", file=sys.stderr)
        sys.exit(2)


def run_cli(command: Callable[[], int], *, interrupted: str | None = None) -> NoReturn:
    """Run a command and exit with its code, or with 2 after a user error.

    Args:
        interrupted: message for Ctrl-C or another signal (exit code 128 plus its number); None re-raises.
    """
    guard_output()
    with one_line_errors():
        try:
            sys.exit(command())
        except KeyboardInterrupt as stop:
            if interrupted is None:
                raise
            print(f"qgoft: {interrupted}", file=sys.stderr)
            sys.exit(exit_code(stop))


def run_command(name: str) -> NoReturn:
    """Run `qgoft.commands.<name>` with the arguments of the command line, and exit with its code."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the tokenizers' threads deadlock after a fork
    with one_line_errors():
        check_configs()
        command = importlib.import_module(f"qgoft.commands.{name}")  # reads configuration files
    run_cli(lambda: command.main(sys.argv[1:]), interrupted=getattr(command, "INTERRUPTED", None))
