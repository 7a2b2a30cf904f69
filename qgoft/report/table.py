"""Tables as text: terminal, Markdown and CSV. `latex.py` and `page.py` have the other forms, `table_files.py` writes them."""

import csv
import io
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from qgoft.report.names import display_label

# Prefix of the notes that repeat the context rows.
CONTEXT = "published "
MISSING = "-"  # a cell without value
# A reason may quote a judge or a data set, which must not become markup.
MARKDOWN = str.maketrans({"|": "\\|", "<": "&lt;", "\n": " ", "`": "\\`", "[": "\\[", "]": "\\]"})


def table_name(name: str, protocol: str) -> str:
    """Return the name of a table or figure, with the protocol in it unless that is pocket."""
    return name if protocol == "pocket" else f"{name}-{protocol}"


def _markdown(text: str) -> str:
    return flat(text).translate(MARKDOWN)


def flat(text: str) -> str:
    """Return a text without line ends and control characters, which a record or a judge's text may contain."""
    return "".join(letter for letter in " ".join(text.splitlines()) if unicodedata.category(letter) not in ("Cc", "Cf", "Cs"))


def typographic(cell: str) -> str:
    """Return a cell with minus signs and dashes instead of hyphens: −1.2, 0.8–0.9, – for a missing value."""
    if cell == MISSING:
        return "–"
    if not re.fullmatch(r"[-+\d.,e±%()\[\]†* ]+", cell):
        return cell  # a name, such as llama-2-7b
    return re.sub(r"(?<![\w.)])-(?=[\d.])", "−", re.sub(r"(?<=\d)-(?=\d)", "–", re.sub(r"(\de)-(?=\d)", r"\1−", cell)))


def _csv(text: str) -> str:
    """Return a cell that a spreadsheet does not evaluate as a formula; numbers keep their sign."""
    text = flat(text)
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


@dataclass(frozen=True)
class ColumnGroup:
    """Neighbouring columns under one heading.

    Attributes:
        first: number of the first column.
        titles: of the columns under the heading; alone they need not be unique.
    """

    title: str
    first: int
    titles: tuple[str, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.titles) - 1


@dataclass
class Table:
    """Cells as text; the first column is aligned left, the others right.

    Attributes:
        columns: unique titles.
        groups: headings over columns, for LaTeX and the page.
        rules_before: rows that are preceded by a rule.
        highlights: (row, column) -> best (bold) or second (underlined).
        sources: (row, column) -> keys of the records behind a cell.
        context: printed rows that may not be compared. A terminal shows them below the others, without the notes that repeat them (CONTEXT).
        has_methods: the first column holds labels of methods: CSV and JSON keep them, other forms show names.
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
    groups: list[ColumnGroup] = field(default_factory=list)
    has_methods: bool = False

    def add_row(self, cells: list[str], keys: Sequence[str]) -> None:
        """Append a row; `keys` are those of the records behind each of its cells but the first."""
        self.sources |= {(len(self.rows), column): list(keys) for column in range(1, len(cells))}
        self.rows.append(cells)

    def label(self, text: str) -> str:
        """Return the displayed text of the first cell of a row, or of the first title."""
        return display_label(text) if self.has_methods else text

    def headings(self) -> list[tuple[str, int]]:
        """Return (heading, width) over all columns, with an empty heading between the groups; empty without groups."""
        found, place = [], 0
        for group in self.groups:
            found += [("", group.first - place)] if group.first > place else []
            found.append((group.title, len(group.titles)))
            place = group.last + 1
        rest = len(self.columns) - place
        return [*found, *([("", rest)] if rest else [])] if found else []

    def short_titles(self) -> list[str]:
        """Return the titles of the columns under their headings."""
        titles = self.shown(self.columns)
        for group in self.groups:
            titles[group.first : group.last + 1] = group.titles
        return titles

    def shown(self, row: Sequence[str]) -> list[str]:
        """Return the displayed cells of a row, or titles."""
        return [self.label(row[0]), *row[1:]]

    def marked(self, spelling: dict[str, str], escape: Callable[[str], str]) -> list[list[str]]:
        """Return the displayed rows with highlighted cells.

        Args:
            spelling: highlight -> text with `{}` for the cell.
            escape: applied to every cell.
        """
        return [
            [
                spelling.get(self.highlights.get((i, j), ""), "{}").replace("{}", escape(typographic(cell) if j else cell))
                for j, cell in enumerate(self.shown(row))
            ]
            for i, row in enumerate(self.rows)
        ]

    def terminal(self, width: int | None = None) -> str:
        """Return the table as aligned text.

        Args:
            width: columns of the terminal. A wider table is folded: the remaining columns follow below. None: no limit.
        """
        lines = [[flat(cell) for cell in self.shown(line)] for line in (self.columns, *self.rows, *self.context)]
        rules_before = {*self.rules_before, *([len(self.rows)] if self.context else [])}
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        out = [flat(self.title)]
        for part in _fold(widths, width):
            out += [""] if len(out) > 1 else []
            for number, line in enumerate(lines):
                if number - 1 in rules_before or number == 1:
                    out.append("-" * (sum(widths[i] for i in part) + 2 * (len(part) - 1)))
                out.append("  ".join(line[i].rjust(widths[i]) if i else line[i].ljust(widths[i]) for i in part).rstrip())
        notes = [flat(note) for note in self.notes if not (self.context and note.startswith(CONTEXT))]
        if width is not None:
            notes = [textwrap.fill(note, width, subsequent_indent="  ") for note in notes]
        return "\n".join([*out, *notes]) + "\n"

    def markdown(self) -> str:
        def row(cells: list[str]) -> str:
            return "| " + " | ".join(cells) + " |"

        align = "|" + "|".join([" --- ", *[" ---: "] * (len(self.columns) - 1)]) + "|"
        marked = self.marked({"best": "**{}**", "second": "<u>{}</u>"}, _markdown)
        lines = [f"**{_markdown(self.title)}**", "", row([_markdown(name) for name in self.shown(self.columns)]), align, *map(row, marked)]
        if self.notes:
            lines += ["", *(f"- {_markdown(note)}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def csv(self) -> str:
        """Return labels and numbers for programs, without names and typography."""
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([[_csv(cell) for cell in row] for row in (self.columns, *self.rows)])
        return out.getvalue()


def terminal_width() -> int | None:
    """Return the width of the terminal, or None if the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
