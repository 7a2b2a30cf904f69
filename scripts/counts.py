#!/usr/bin/env python3
"""Trainable parameters (qgoft/commands/counts.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("counts")
