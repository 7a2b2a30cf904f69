#!/usr/bin/env python3
"""Convert adapters (qgoft/commands/convert.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("convert")
