#!/usr/bin/env python3
"""Plan and run a suite (qgoft/commands/suite.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("suite")
