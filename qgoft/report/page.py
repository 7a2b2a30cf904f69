"""The report as one self-contained page: tables in which every measured cell opens its runs, and figures that show values and runs."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from qgoft.records import Record, RunFiles
from qgoft.report.figures import VEGA_LITE, Figure
from qgoft.report.run_data import run_data
from qgoft.report.table import Table, typographic

TEMPLATES = Path(__file__).parent / "templates"
# A cell with more letters is broken into lines.
WORDS = 40


@dataclass
class Section:
    """Part of the page. Sections of one entry differ in their protocol, and one is shown at a time.

    Attributes:
        paper: heading in the contents.
        entry: title of the entry; the section's own title by default.
    """

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    text: str = ""
    paper: str = "This suite"
    entry: str = ""
    protocol: str = ""


@dataclass
class Summary:
    """First screen of the page."""

    sentences: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    table: Table | None = None


def build_page(
    title: str,
    summary: Summary,
    sections: Sequence[Section],
    records: Sequence[Record],
    files: Mapping[str, RunFiles],
    models: Mapping[str, str],
) -> str:
    """Build the page. It loads nothing from outside, and text from data and judges is escaped.

    Args:
        files: key of a record -> its curve.
        models: name of a model in records -> name of its config file, for the commands.
    """
    data, numbers = run_data(records, files, models)
    charts: list[dict[str, Any]] = []
    data["charts"] = charts

    def figure(one: Figure) -> dict[str, Any]:
        charts.append(one.spec)
        return {"svg": _svg(one, len(charts)), "caption": one.caption, "chart": len(charts) - 1}

    def panel(section: Section) -> dict[str, Any]:
        return {
            "text": section.text,
            "protocol": section.protocol,
            "tables": [TableView(table, numbers, section.name) for table in section.tables],
            "figures": [figure(one) for one in section.figures],
        }

    first = {
        "sentences": summary.sentences,
        "figures": [figure(one) for one in summary.figures],
        "table": None if summary.table is None else TableView(summary.table, numbers, "summary"),
    }
    contents: dict[str, dict[str, dict[str, Any]]] = {}
    for section in sections:
        name = section.entry or section.title
        entry = contents.setdefault(section.paper, {}).setdefault(name, {"id": _id(section.name), "title": name, "panels": []})
        entry["panels"].append(panel(section))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title,
        summary=first,
        contents=[(paper, list(entries.values())) for paper, entries in contents.items()],
        protocols=list(dict.fromkeys(section.protocol for section in sections if section.protocol)),
        charts=charts,
        vega=_vega() if charts else "",
        css=(TEMPLATES / "page.css").read_text(),
        js=(TEMPLATES / "page.js").read_text(),
        # In a script element only the sequence that would end it, or start a comment, must be escaped.
        data=json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c"),
    )


def _vega() -> str:
    """Return vega-embed with Vega and Vega-Lite as one script that sets `vegaEmbed`."""
    import vl_convert

    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return bundle.replace("</script", "<\\/script")


class TableView:
    """A table as the template shows it."""

    def __init__(self, table: Table, numbers: Mapping[str, int], section: str):
        self.table, self.numbers = table, numbers
        self.id = _id(f"table-{section}-{table.name}")  # sections of two protocols show the same printed figures
        self.title, self.notes = table.title, table.notes

    @property
    def rows(self) -> list[list[str]]:
        return [[cell if place == 0 else typographic(cell) for place, cell in enumerate(self.table.shown(row))] for row in self.table.rows]

    @property
    def titles(self) -> list[tuple[str, str]]:
        """Return (title under its group, unique title) of each column."""
        return list(zip(self.table.short_titles(), self.table.shown(self.table.columns), strict=True))

    @property
    def groups(self) -> list[tuple[str, int]]:
        return self.table.headings()

    def runs(self, line: int, place: int) -> list[int]:
        """Return the numbers of the runs behind a cell."""
        return [self.numbers[key] for key in self.table.sources.get((line, place), []) if key in self.numbers]

    def kind(self, line: int, place: int, text: str) -> str:
        return self.table.highlights.get((line, place), "") or ("words" if len(text) > WORDS else "")

    def row_kind(self, line: int) -> str:
        kinds = {"sub": self.table.rows[line][0].startswith("  "), "rule": line in self.table.rules_before}
        return " ".join(kind for kind, holds in kinds.items() if holds)

    def key(self, line: int) -> str:
        """Return the label of a row, if it is shown by another name."""
        label = self.table.rows[line][0]
        return label.strip() if self.table.label(label) != label else ""

    def describe(self, line: int, place: int, text: str) -> str:
        return f"{self.table.label(self.table.rows[line][0]).strip()}, {self.table.columns[place]}: {text}"


def _id(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name)


def _svg(figure: Figure, number: int) -> str:
    """Return the SVG element with a name, and with ids that no other figure has."""
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\1f{number}-", figure.svg)
    return svg.replace('class="marks"', f'role="img" aria-label="{figure.caption}"', 1)
