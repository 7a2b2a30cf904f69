"""A table of text, and its spellings: terminal, markdown, LaTeX, CSV; the page of the report has its own (qgoft/report/page.py)."""

import csv
import io
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qgoft.records import write_atomically

CONTEXT = "published "
LATEX = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"±": "$\\pm$", "|": "$|$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}", "λ": "$\\lambda$"}
    | {"<": "$<$", ">": "$>$", "†": "$\\dagger$", "\n": " "}
)
# What a judge or a data set wrote may stand in a reason: it must not become markup.
MARKDOWN = str.maketrans({"|": "\\|", "<": "&lt;", "\n": " ", "`": "\\`", "[": "\\[", "]": "\\]"})


def _latex(text: str) -> str:
    return _flat(text).translate(LATEX)


def _markdown(text: str) -> str:
    return _flat(text).translate(MARKDOWN)


def _flat(text: str) -> str:
    """Return a text without line ends and control characters, of which a record or a judge's text may hold any kind."""
    return "".join(letter for letter in " ".join(text.splitlines()) if unicodedata.category(letter) not in ("Cc", "Cf", "Cs"))


def _csv(text: str) -> str:
    """Return a cell that no spreadsheet takes for a formula; numbers keep their sign."""
    text = _flat(text)
    return f"'{text}" if text[:1] in ("=", "@", "+", "-") and not re.match(r"[-+]?(\d|\.\d|$)", text) else text


def _fold(widths: Sequence[int], width: int | None) -> list[list[int]]:
    """Return the columns of each part of a table, the first column in all of them."""
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
    """Cells as text, first column left, the others right.

    Args:
        rules: numbers of the rows that a line goes before.
        marks: (row, column) -> best (bold) or second (underlined).
        runs: (row, column) -> keys of the records behind a cell.
        context: printed figures that may not be compared, one row each: below the others in a terminal, where the notes that begin with
            CONTEXT and say the same are left out.
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
        """The rows with their marks in some spelling."""
        return [
            [spelling.get(self.highlights.get((i, j), ""), "{}").replace("{}", escape(cell)) for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]

    def terminal(self, width: int | None = None) -> str:
        """Return the table as aligned text.

        Args:
            width: columns of the terminal. A wider table is folded: further columns follow below, after the first column again. None: no limit.
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

    def write(self, folder: Path) -> list[Path]:
        """Write name.md, name.tex and name.csv; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for suffix, text in (("md", self.markdown()), ("tex", self.latex()), ("csv", self.csv())):
            paths.append(write_atomically(folder / f"{self.name}.{suffix}", text))
        return paths


def terminal_width() -> int | None:
    """Return the width of the terminal, or None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def document(tables: Sequence[Table]) -> str:
    """A LaTeX document of the tables whose files lie beside it, none of them larger than the page."""
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
