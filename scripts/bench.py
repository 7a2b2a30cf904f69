#!/usr/bin/env python3
"""Time and memory (qgoft/commands/bench.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("bench")
