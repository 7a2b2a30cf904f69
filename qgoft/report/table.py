"""Tables as text: terminal, Markdown, LaTeX and CSV, and the runs behind their cells as JSON. `qgoft.report.page` writes HTML."""

import csv
import io
import json
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qgoft.config.locations import REPOSITORY
from qgoft.records import write_atomically

# Prefix of the notes that repeat the context rows.
CONTEXT = "published "
LATEX = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"±": "$\\pm$", "|": "$|$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}", "λ": "$\\lambda$"}
    | {"<": "$<$", ">": "$>$", "†": "$\\dagger$", "\n": " "}
)
# A reason may quote a judge or a data set, which must not become markup.
MARKDOWN = str.maketrans({"|": "\\|", "<": "&lt;", "\n": " ", "`": "\\`", "[": "\\[", "]": "\\]"})


def _latex(text: str) -> str:
    return _flat(text).translate(LATEX)


def _markdown(text: str) -> str:
    return _flat(text).translate(MARKDOWN)


def _flat(text: str) -> str:
    """Return a text without line ends and control characters, which a record or a judge's text may contain."""
    return "".join(letter for letter in " ".join(text.splitlines()) if unicodedata.category(letter) not in ("Cc", "Cf", "Cs"))


def _csv(text: str) -> str:
    """Return a cell that a spreadsheet does not evaluate as a formula; numbers keep their sign."""
    text = _flat(text)
    return f"'{text}" if text[:1] in ("=", "@", "+", "-") and not re.match(r"[-+]?(\d|\.\d|$)", text) else text


def _fold(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Return the columns of each part of a folded table; every part starts with the first column."""
    parts, used = [[0]], widths[0]
    for column in range(1, len(widths)):
        if width is not None and used + 2 + widths[column] > width and len(parts[-1]) > 1:
            parts.append([0])
            used = widths[0]
        parts[-1].append(column)
        used += 2 + widths[column]
    return parts


def _one_line(text: str) -> str:
    return " ".join(_flat(text).split())


@dataclass
class Table:
    """Cells as text; the first column is aligned left, the others right.

    Attributes:
        rules_before: rows that are preceded by a rule.
        highlights: (row, column) -> best (bold) or second (underlined).
        sources: (row, column) -> keys of the records behind a cell.
        context: printed rows that may not be compared. A terminal shows them below the others, without the notes that repeat them (CONTEXT).
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rules_before: list[int] = field(default_factory=list)
    highlights: dict[tuple[int, int], str] = field(default_factory=dict)
    sources: dict[tuple[int, int], list[str]] = field(default_factory=dict)
    context: list[list[str]] = field(default_factory=list)

    def _marked(self, spelling: dict[str, str], escape: Callable[[str], str]) -> list[list[str]]:
        """Return the rows with highlighted cells.

        Args:
            spelling: highlight -> text with `{}` for the cell.
        """
        return [
            [spelling.get(self.highlights.get((i, j), ""), "{}").replace("{}", escape(cell)) for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]

    def terminal(self, width: int | None = None) -> str:
        """Return the table as aligned text.

        Args:
            width: columns of the terminal. A wider table is folded: the remaining columns follow below. None: no limit.
        """
        lines = [[_flat(cell) for cell in line] for line in (self.columns, *self.rows, *self.context)]
        rules_before = {*self.rules_before, *([len(self.rows)] if self.context else [])}
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        out = [_flat(self.title)]
        for part in _fold(widths, width):
            out += [""] if len(out) > 1 else []
            for number, line in enumerate(lines):
                if number - 1 in rules_before or number == 1:
                    out.append("-" * (sum(widths[i] for i in part) + 2 * (len(part) - 1)))
                out.append("  ".join(line[i].rjust(widths[i]) if i else line[i].ljust(widths[i]) for i in part).rstrip())
        notes = [_flat(note) for note in self.notes if not (self.context and note.startswith(CONTEXT))]
        if width is not None:
            notes = [textwrap.fill(note, width, subsequent_indent="  ") for note in notes]
        return "\n".join([*out, *notes]) + "\n"

    def markdown(self) -> str:
        def row(cells: list[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        align = "|" + "|".join([" --- ", *[" ---: "] * (len(self.columns) - 1)]) + "|"
        marked = self._marked({"best": "**{}**", "second": "<u>{}</u>"}, _markdown)
        lines = [f"**{_markdown(self.title)}**", "", row([_markdown(name) for name in self.columns]), align, *map(row, marked)]
        if self.notes:
            lines += ["", *(f"- {_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        def row(cells: list[str]) -> str:
            return " & ".join(cells) + r" \\"

        body = []
        for number, cells in enumerate(self._marked({"best": r"\textbf{{}}", "second": r"\underline{{}}"}, _latex)):
            if number in self.rules_before:
                body.append(r"\midrule")
            body.append(row(cells))
        notes = [f"% {_one_line(note)}" for note in self.notes]
        names = [_latex(name) for name in self.columns]
        head = [r"\begin{tabular}{l" + "r" * (len(self.columns) - 1) + "}", r"\toprule", row(names), r"\midrule"]
        return "\n".join([f"% {_one_line(self.title)}", *notes, *head, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([[_csv(cell) for cell in row] for row in (self.columns, *self.rows)])
        return out.getvalue()

    def sources_json(self, directories: Mapping[str, Path]) -> str:
        """Return the runs behind the cells: row -> column -> short keys, and the directory of each run.

        Columns with an average are left out: their runs are those of the other columns.
        """
        cells: dict[str, dict[str, list[str]]] = {}
        for (line, place), keys in sorted(self.sources.items()):
            if self.columns[place] != "Avg":
                cells.setdefault(self.rows[line][0].strip(), {})[self.columns[place]] = [key[:16] for key in sorted(keys)]
        keys = sorted({key for keys in self.sources.values() for key in keys})
        runs = {key[:16]: directory_name(directories[key]) for key in keys if key in directories}
        rows = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}: {json.dumps(columns)}" for row, columns in cells.items())
        places = ",\n".join(f"  {json.dumps(key)}: {json.dumps(place)}" for key, place in runs.items())
        return f'{{\n "title": {json.dumps(self.title, ensure_ascii=False)},\n "cells": {{\n{rows}\n }},\n "runs": {{\n{places}\n }}\n}}\n'

    def write(self, directory: Path, directories: Mapping[str, Path] | None = None) -> list[Path]:
        """Write name.md, name.tex and name.csv, and name.json if the table has sources. Return their paths.

        Args:
            directories: key of a record -> its directory.
        """
        directory.mkdir(parents=True, exist_ok=True)
        texts = {"md": self.markdown(), "tex": self.latex(), "csv": self.csv()}
        if self.sources:
            texts["json"] = self.sources_json(directories or {})
        return [write_atomically(directory / f"{self.name}.{suffix}", text) for suffix, text in texts.items()]


def directory_name(path: Path) -> str:
    """Return the path of a run, relative to the repository if it is inside."""
    absolute = path.resolve()
    return os.path.relpath(absolute, REPOSITORY) if absolute.is_relative_to(REPOSITORY) else str(path)


def terminal_width() -> int | None:
    """Return the width of the terminal, or None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def document(tables: Sequence[Table]) -> str:
    """Return a LaTeX document that inputs the tables next to it, each scaled to the page."""
    parts = [rf"\shown{{{_latex(table.title)}}}{{{table.name}}}" for table in tables]
    head = [
        r"\documentclass{article}",
        r"\usepackage[a4paper,landscape,margin=15mm]{geometry}",
        r"\usepackage{booktabs,graphicx}",
        r"\newcommand{\shown}[2]{\sbox0{\input{#2.tex}}%",
        r"  \par\noindent\begin{minipage}{\linewidth}\textbf{#1}\par\smallskip\noindent",
        r"  \ifdim\dimexpr\ht0+\dp0\relax>.9\textheight\resizebox*{!}{.9\textheight}{\usebox0}%",
        r"  \else\ifdim\wd0>\linewidth\resizebox{\linewidth}{!}{\usebox0}\else\usebox0\fi\fi\end{minipage}\par\bigskip}",
    ]
    return "\n".join([*head, r"\begin{document}", *parts, r"\end{document}"]) + "\n"
