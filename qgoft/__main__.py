"""`python -m qgoft COMMAND ...`: run a command of `qgoft.commands`."""

import pkgutil
import sys

from qgoft import commands
from qgoft.cli import run_cli, run_command
from qgoft.errors import check_choice


def _unknown(name: str, known: list[str]) -> int:
    check_choice("command", name, known, "python -m qgoft COMMAND")
    return 2


if __name__ == "__main__":
    name, sys.argv[1:] = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else "", sys.argv[2:]
    known = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    if name not in known:
        run_cli(lambda: _unknown(name, known))
    sys.argv[0] = f"-m qgoft {name}"
    run_command(name)
