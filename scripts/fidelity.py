#!/usr/bin/env python3
"""Compare with the authors' code (qgoft/commands/fidelity.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("fidelity")
