"""Check the tables of the documents against results/example, or write them after `make report`.

    python -m qgoft doc-tables             name every table that differs
    python -m qgoft doc-tables --write     write the tables

A document contains some columns of a table between two comments, with all rows or those that are named (without marks such as `(subset)`):

    <!-- table real-glue-small | #Param | CoLA | MRPC -->
    <!-- end of table -->
    <!-- table orthogonality-glue-small | median | rows: goft; oft@b8 -->
    <!-- end of table -->
"""

import argparse
import csv
import re
import sys
from dataclasses import dataclass

from qgoft.cli import Parser
from qgoft.config.locations import REPOSITORY, RESULTS
from qgoft.errors import QgoftError
from qgoft.report.names import display_label

DOCUMENTS = ("README.md", "docs/FINDINGS.md")
TABLES = RESULTS / "example" / "tables"
ROWS = "rows: "
END = "<!-- end of table -->"
BLOCK = re.compile(rf"<!-- table ([\w-]+)\s+\|\s+([^>]+?)\s+-->\n(.*?){END}", re.S)


def read_table(name: str) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table.

    Raises:
        QgoftError: results/example has no such table.
    """
    try:
        with (TABLES / f"{name}.csv").open(newline="") as file:
            columns, *rows = csv.reader(file)
    except OSError as error:
        raise QgoftError(f"table {name}: not in {TABLES}; run `make report`") from error
    return columns, rows


@dataclass(frozen=True)
class Block:
    """Part of a table in a document. Without `rows` it has all rows."""

    table: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]

    @classmethod
    def of(cls, match: re.Match[str]) -> "Block":
        """Parse the first comment of a block."""
        *columns, last = (part.strip() for part in " ".join(match[2].split()).split(" | "))
        rows = last.removeprefix(ROWS).split("; ") if last.startswith(ROWS) else []
        return cls(match[1], (*columns, *([] if rows else [last])), tuple(rows))

    def cells(self) -> list[list[str]]:
        """Return the label of each row with its marks, and its columns.

        Raises:
            QgoftError: an unknown table, column or row.
        """
        columns, rows = read_table(self.table)
        missing = [f"column {column}" for column in self.columns if columns.count(column) != 1]
        missing += [f"row {label}" for label in self.rows if label not in {plain(row[0]) for row in rows}]
        if missing:
            raise QgoftError(f"table {self.table} has no {missing[0]}; its columns are {', '.join(columns)}")
        places = [columns.index(column) for column in self.columns]
        chosen = [row for label in self.rows for row in rows if plain(row[0]) == label] if self.rows else rows
        return [[row[0], *(row[place] for place in places)] for row in chosen]

    def markdown(self) -> str:
        """Return the rows in Markdown."""
        cells = [[display_label(label), *cells] for label, *cells in self.cells()]
        lines = [["", *self.columns], [" --- ", *[" ---: "] * len(self.columns)], *cells]
        return "".join("| " + " | ".join(cell.strip().replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def plain(label: str) -> str:
    """Return the label of a row without its marks."""
    return label.partition(" (")[0].removesuffix(" *")


def update(text: str) -> tuple[str, list[str]]:
    """Return a document with the current tables, and the names of those that differed."""
    changed: list[str] = []

    def block(match: re.Match[str]) -> str:
        current = Block.of(match).markdown()
        if current != match[3]:
            changed.append(match[1])
        return match[0][: match.start(3) - match.start()] + current + END

    return BLOCK.sub(block, text), changed


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args(argv)
    if REPOSITORY is None:
        raise QgoftError("the documents are not part of the installed package; run this in a checkout")
    total = 0
    for name in DOCUMENTS:
        path = REPOSITORY / name
        try:
            text, changed = update(path.read_text())
        except QgoftError as error:
            raise QgoftError(f"{name}: {error}") from error
        for table in changed:
            print(f"{name}: table {table} {'written' if arguments.write else 'differs'}")
        total += len(changed)
        if arguments.write and changed:
            path.write_text(text)
    print(f"{total} tables {'written' if arguments.write else 'differ'}", file=sys.stderr)
    return 1 if total and not arguments.write else 0
