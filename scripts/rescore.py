#!/usr/bin/env python3
"""Evaluate a finished run again (qgoft/commands/rescore.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("rescore")
