"""How tables are printed: `BOLD` and `STYLE` of make."""

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

BOLD = ("significant", "best")
STYLES = ("plain", "paper")


@dataclass(frozen=True)
class TableStyle:
    """Choices for score tables.

    Attributes:
        bold: significant: the best and second of a column if their order is; best: the highest and second highest mean, as papers do.
        name: plain: marks such as (subset) follow the names of rows; paper: they are notes.
    """

    bold: str = "significant"
    name: str = "plain"

    @property
    def is_paper(self) -> bool:
        return self.name == "paper"


PLAIN = TableStyle()


def add_style_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--bold", default=BOLD[0], choices=BOLD, help="what is bold in a column: the significantly best row, or the highest mean"
    )
    parser.add_argument("--style", default=STYLES[0], choices=STYLES, help="paper: marks such as (subset) are notes")


def style_of(arguments: Namespace) -> TableStyle:
    return TableStyle(arguments.bold, arguments.style)
