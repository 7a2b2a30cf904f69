#!/usr/bin/env python3
"""Copy finished runs (qgoft/commands/collect.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("collect")
