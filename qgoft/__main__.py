"""`python -m qgoft COMMAND ...`: commands that have no script of their own."""

import pkgutil
import sys

from qgoft import commands
from qgoft.cli import leave, run_command
from qgoft.errors import choose

if __name__ == "__main__":
    name, sys.argv[1:] = sys.argv[1].replace("-", "_") if len(sys.argv) > 1 else "", sys.argv[2:]
    known = [module.name for module in pkgutil.iter_modules(commands.__path__)]
    if name not in known:
        leave(lambda: int(bool(choose("command", name, known, "python -m qgoft COMMAND"))))
    sys.argv[0] = f"-m qgoft {name}"
    run_command(name)
