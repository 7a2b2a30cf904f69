#!/usr/bin/env python3
"""Check the figures that the papers print (qgoft/commands/audit.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("audit")
