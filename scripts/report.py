#!/usr/bin/env python3
"""Tables, figures and the page (qgoft/commands/report.py)."""

from qgoft.cli import run_command

if __name__ == "__main__":
    run_command("report")
