#!/usr/bin/env python3
"""Plan and run a suite or items of the papers, and print their tables (qgoft/commands/sweep.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("sweep")
