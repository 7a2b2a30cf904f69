#!/usr/bin/env python3
"""Search learning rates (qgoft/commands/tune.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("tune")
