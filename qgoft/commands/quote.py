"""Numbers in the documents that come from the tables of results/example: check them, or write them anew after `make report`.

    python -m qgoft quote             names every quote that is not its table's
    python -m qgoft quote --write     takes the numbers from the tables

A quote is a link to a table with the row and the column in its title; its numbers are the first ones of that cell:

    [87.7](../results/example/tables/table1.md "lora@r8 | Avg")

A row is named by its first cell without marks such as `(subset)`, or by its first cells where one would not do; a row of differences together
with what is taken off, "qgoft minus lora@r8 | Avg". Whole columns of a table stand between two comments, and are written anew as they are, all
rows of them or those that are named:

    <!-- table real-glue-small | #Param | CoLA | MRPC -->
    <!-- end of table -->
    <!-- table orthogonality-glue-small | median | rows: goft; oft@b8 -->
    <!-- end of table -->
"""

import argparse
import csv
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from qgoft.cli import Parser
from qgoft.config.locations import REPOSITORY
from qgoft.errors import QgoftError

DOCUMENTS = ("README.md", "docs/FINDINGS.md", "docs/cluster.md")
TABLES = REPOSITORY / "results" / "example" / "tables"
QUOTE = re.compile(r'\[([^\]\[]+)\]\((?:\.\./)?results/example/tables/([\w-]+)\.md "([^"]+)"\)')
ROWS = "rows: "
BLOCK_END = "<!-- end of table -->"
BLOCK = re.compile(rf"<!-- table ([\w-]+) \| ([^>]+?) -->\n(.*?){BLOCK_END}", re.S)
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?[MB%]?(?!\.?\w)")


@dataclass(frozen=True)
class Quote:
    text: str
    table: str
    row: tuple[str, ...]
    column: str

    def cell(self) -> str:
        """What the table has there.

        Raises:
            QgoftError: no such table, row or column, or several.
        """
        return pick(*read_table(self.table), self)

    def renewed(self) -> str:
        """The text with the numbers of the table."""
        found = NUMBER.findall(self.cell())
        first, *rest = NUMBER.split(self.text)
        if not 0 < len(rest) <= len(found):
            raise QgoftError(f"[{self.text}] has {len(rest)} numbers, its cell {len(found)}; quote the first ones of the cell")
        return first + "".join(number + part for number, part in zip(found, rest, strict=False))


def read_table(name: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table.

    Raises:
        QgoftError: there is none of this name.
    """
    try:
        with (TABLES / f"{name}.csv").open(newline="") as file:
            columns, *rows = csv.reader(file)
    except OSError as error:
        raise QgoftError(f"table {name} is quoted, which {TABLES} has not; run `make report`") from error
    return columns, rows


@dataclass(frozen=True)
class Block:
    """Part of a table: some of its columns, and of its rows those that are named, or all."""

    table: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]

    @classmethod
    def of(cls, match: re.Match[str]) -> "Block":
        *columns, last = match[2].split(" | ")
        rows = last.removeprefix(ROWS).split("; ") if last.startswith(ROWS) else []
        return cls(match[1], (*columns, *([] if rows else [last])), tuple(rows))

    def cells(self) -> list[list[str]]:
        """The label of each row, with its marks, and its columns.

        Raises:
            QgoftError: no such table, column or row.
        """
        columns, rows = read_table(self.table)
        by_label = {plain(row[0]): row for row in rows}
        missing = [column for column in self.columns if columns.count(column) != 1]
        missing += [f"or row {label}" for label in self.rows if label not in by_label]
        if missing:
            raise QgoftError(f"table {self.table} has no column {missing[0]}; it has {', '.join(columns)}")
        places = [columns.index(column) for column in self.columns]
        chosen = [by_label[label] for label in self.rows] if self.rows else rows
        return [[row[0], *(row[place] for place in places)] for row in chosen]

    def markdown(self) -> str:
        lines = [["", *self.columns], [" --- ", *[" ---: "] * len(self.columns)], *self.cells()]
        return "".join("| " + " | ".join(cell.strip() for cell in line) + " |\n" for line in lines)


def pick(columns: list[str], rows: list[list[str]], quote: Quote) -> str:
    """The cell of a quote among the rows of its table."""
    named = (plain(quote.row[0]), *quote.row[1:])
    less = f" {plain(columns[0])}" if columns[0].startswith("minus ") else ""
    fitting = [row for row in rows if (plain(row[0]) + less, *row[1 : len(named)]) == named]
    if len(fitting) != 1 or columns.count(quote.column) != 1:
        raise QgoftError(
            f"[{quote.text}]: table {quote.table} has {len(fitting)} rows called {' | '.join(quote.row)} and {columns.count(quote.column)} columns "
            f"called {quote.column}; its columns are {', '.join(columns)}"
        )
    return fitting[0][columns.index(quote.column)]


def plain(label: str) -> str:
    """A row's label without its marks."""
    return label.partition(" (")[0].removesuffix(" *")


def quotes(text: str) -> Iterator[tuple[re.Match[str], Quote]]:
    for match in QUOTE.finditer(text):
        *row, column = (word.strip() for word in match[3].split(" | "))
        yield match, Quote(match[1], match[2], tuple(row), column)


def renew(text: str) -> tuple[str, list[str]]:
    """A document with the numbers of the tables, and what was changed."""
    parts, changed, end = [], [], 0

    def block(match: re.Match[str]) -> str:
        new = Block.of(match).markdown()
        if new != match[3]:
            changed.append(f"the columns of {match[1]} are not those of the table")
        return match[0][: match.start(3) - match.start()] + new + BLOCK_END

    text = BLOCK.sub(block, text)
    for match, quote in quotes(text):
        new = quote.renewed()
        parts += [text[end : match.start(1)], new]
        end = match.end(1)
        if new != quote.text:
            changed.append(f"[{quote.text}] is [{new}] in {quote.table}, {' | '.join(quote.row)}, {quote.column}")
    return "".join([*parts, text[end:]]), changed


def main(words: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args(words)
    total = 0
    for name in DOCUMENTS:
        path = REPOSITORY / name
        try:
            text, changed = renew(path.read_text())
        except QgoftError as error:
            raise QgoftError(f"{name}: {error}") from error
        for line in changed:
            print(f"{name}: {line}")
        total += len(changed)
        if arguments.write and changed:
            path.write_text(text)
    print(f"{total} numbers {'written' if arguments.write else 'differ'}", file=sys.stderr)
    return 1 if total and not arguments.write else 0
