"""How a command ends: what is wrong with the input comes out as one line, and the exit code says so."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable
from typing import NoReturn

from qgoft.console import guard_output
from qgoft.errors import DISK_ERRORS, QgoftError
from qgoft.records import RecordError


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, as all mistakes are."""

    def error(self, message: str) -> NoReturn:
        # make sets most options: the message names its variable.
        message = re.sub(r"argument --([a-z]+)", lambda found: f"argument --{found[1]} ({found[1].upper()} of make)", message)
        raise QgoftError(f"{message}; `python {self.prog} --help` lists what there is")


def exit_code(stop: KeyboardInterrupt) -> int:
    """As a shell has it: 128 and the number of the signal, which is 2 for Ctrl-C."""
    return 128 + int(getattr(stop, "number", 2))


def run_cli(command: Callable[[], int], *, interrupted: str | None = None) -> NoReturn:
    """Run a command and exit with its code, or with 2 after a mistake in the input.

    Args:
        interrupted: what to say after Ctrl-C or another signal (exit code 128 and its number, 130), where there is something to say.
    """
    guard_output()
    try:
        sys.exit(command())
    except (QgoftError, RecordError) as error:
        print(f"qgoft: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        file = error.filename or "a file"  # what a write itself answers names none
        print(f"qgoft: cannot open or write {file}: {error.strerror}; free space or choose another folder", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as stop:
        if interrupted is None:
            raise
        print(f"qgoft: {interrupted}", file=sys.stderr)
        sys.exit(exit_code(stop))


def run_command(name: str) -> NoReturn:
    """Run one of `qgoft.commands` with the words of the command line, and exit with its code."""
    command = importlib.import_module(f"qgoft.commands.{name}")
    run_cli(lambda: command.main(sys.argv[1:]), interrupted=getattr(command, "INTERRUPTED", None))
