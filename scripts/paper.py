#!/usr/bin/env python3
"""Plan and run items of the papers (qgoft/commands/items.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("items")
