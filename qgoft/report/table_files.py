"""Files of a table: Markdown, LaTeX, CSV, and the runs behind its cells as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path

from qgoft.records import RunFiles, write_atomically
from qgoft.report.latex import latex_table
from qgoft.report.table import Table


def write_table(table: Table, directory: Path, files: Mapping[str, RunFiles] | None = None) -> list[Path]:
    """Write name.md, name.tex and name.csv, and name.json if the table has sources. Return their paths.

    Args:
        files: key of a record -> files of its run.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {"md": table.markdown(), "tex": latex_table(table), "csv": table.csv()}
    if table.sources:
        texts["json"] = sources_json(table, files or {})
    return [write_atomically(directory / f"{table.name}.{suffix}", text) for suffix, text in texts.items()]


def sources_json(table: Table, files: Mapping[str, RunFiles]) -> str:
    """Return the runs behind the cells: row -> column -> short keys, and the directory or archive of each run.

    A column with an average is left out if there are others: its runs are theirs.
    """
    cells: dict[str, dict[str, list[str]]] = {}
    has_others = any(table.columns[place] != "Avg" for _, place in table.sources)
    for (line, place), keys in sorted(table.sources.items()):
        if table.columns[place] != "Avg" or not has_others:
            cells.setdefault(table.rows[line][0].strip(), {})[table.columns[place]] = [key[:16] for key in sorted(keys)]
    every = sorted({key for keys in table.sources.values() for key in keys})
    runs = {key[:16]: files[key].place for key in every if key in files}
    rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}: {json.dumps(columns)}" for row, columns in cells.items())
    places = ",\n".join(f"  {json.dumps(key)}: {json.dumps(place)}" for key, place in runs.items())
    return f'{{\n "title": {json.dumps(table.title, ensure_ascii=False)},\n "cells": {{\n{rows}\n }},\n "runs": {{\n{places}\n }}\n}}\n'
