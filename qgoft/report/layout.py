"""A table of text, and its four spellings: terminal, markdown, LaTeX, CSV."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

LATEX = str.maketrans({c: "\\" + c for c in "&%$#_{}"} | {"±": "$\\pm$", "|": "$|$", "~": "\\textasciitilde{}"})


@dataclass
class Table:
    """Cells as text, first column left, the others right. `rules` are the numbers of the rows that a line goes before."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rules: list[int] = field(default_factory=list)

    def terminal(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        out = [self.title]
        for number, line in enumerate(lines):
            if number - 1 in self.rules or number == 1:
                out.append("-" * (sum(widths) + 2 * (len(widths) - 1)))
            out.append(
                "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
            )
        return "\n".join([*out, *self.notes]) + "\n"

    def markdown(self) -> str:
        def row(cells: list[str]) -> str:
            return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

        align = "|" + "|".join([" --- ", *[" ---: "] * (len(self.columns) - 1)]) + "|"
        lines = [f"**{self.title}**", "", row(self.columns), align, *map(row, self.rows)]
        if self.notes:
            lines += ["", *(f"- {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        def row(cells: list[str]) -> str:
            return " & ".join(cell.translate(LATEX) for cell in cells) + r" \\"

        body = []
        for number, cells in enumerate(self.rows):
            if number in self.rules:
                body.append(r"\midrule")
            body.append(row(cells))
        notes = [f"% {note}" for note in self.notes]
        head = [r"\begin{tabular}{l" + "r" * (len(self.columns) - 1) + "}", r"\toprule", row(self.columns), r"\midrule"]
        return "\n".join([f"% {self.title}", *notes, *head, *body, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.columns, *self.rows])
        return out.getvalue()

    def write(self, folder: Path) -> list[Path]:
        """Write name.md, name.tex and name.csv; return their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for suffix, text in (("md", self.markdown()), ("tex", self.latex()), ("csv", self.csv())):
            path = folder / f"{self.name}.{suffix}"
            path.write_text(text)
            paths.append(path)
        return paths
