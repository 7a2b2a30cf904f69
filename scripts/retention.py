#!/usr/bin/env python3
"""Measure what finished runs retain (qgoft/commands/retention.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("retention")
