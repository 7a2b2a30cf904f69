#!/usr/bin/env python3
"""One run, or with -m a sweep (qgoft/commands/train.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("train")
