"""Tables as LaTeX: a float with caption, label and notes, and a document with all of them.

Packages: booktabs, threeparttable and adjustbox.
"""

import re
from collections.abc import Sequence

from qgoft.report.names import latex_name
from qgoft.report.table import Table, flat

ESCAPES = str.maketrans(
    {c: "\\" + c for c in "&%$#_{}"}
    | {"±": "$\\pm$", "|": "$|$", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\\": "\\textbackslash{}", "λ": "$\\lambda$"}
    | {"<": "$<$", ">": "$>$", "†": "$^\\dagger$", "−": "$-$", "–": "--", "\n": " "}
)


def escape(text: str) -> str:
    return latex_name(flat(text).translate(ESCAPES))


def latex_table(table: Table) -> str:
    """Return a table environment: caption, label, the rows, and the notes below. It is scaled down if it is wider than the line."""
    body = []
    for number, cells in enumerate(table.marked({"best": r"\textbf{{}}", "second": r"\underline{{}}"}, escape)):
        if number in table.rules_before:
            body.append(r"\midrule")
        body.append(_line(cells))
    notes = [rf"\item {_sentence(escape(note))}" for note in table.notes]
    lines = [
        r"\begin{table}[tb]",
        r"\centering",
        rf"\caption{{{escape(table.title)}}}",
        rf"\label{{tab:{re.sub(r'[^a-z0-9-]+', '-', table.name.lower())}}}",
        r"\begin{adjustbox}{max width=\linewidth,max totalheight=.85\textheight}",
        r"\begin{threeparttable}",
        r"\begin{tabular}{l" + "r" * (len(table.columns) - 1) + "}",
        r"\toprule",
        *_head(table),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\begin{tablenotes}[flushleft]\footnotesize", *notes, r"\end{tablenotes}"] if notes else []),
        r"\end{threeparttable}",
        r"\end{adjustbox}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _head(table: Table) -> list[str]:
    """Return the titles, under those of their groups if there are any."""
    titles = _line([escape(title) for title in table.short_titles()])
    if not table.groups:
        return [titles]
    over = [cell for title, width in table.headings() for cell in _heading(title, width)]
    rules = " ".join(rf"\cmidrule(lr){{{group.first + 1}-{group.last + 1}}}" for group in table.groups)
    return [_line(over), rules, titles]


def _heading(title: str, width: int) -> list[str]:
    """Return the cells of a heading, which are empty where there is none."""
    return [rf"\multicolumn{{{width}}}{{c}}{{{escape(title)}}}"] if title else [""] * width


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def document(tables: Sequence[Table]) -> str:
    """Return a LaTeX document of the tables, in order and without floating."""
    head = [
        r"\documentclass{article}",
        r"\usepackage[a4paper,landscape,margin=15mm]{geometry}",
        r"\usepackage{booktabs,threeparttable,adjustbox}",
        r"\makeatletter",
        r"\renewenvironment{table}[1][]{\par\noindent\minipage{\linewidth}\def\@captype{table}}{\endminipage\par\bigskip}",
        r"\makeatother",
    ]
    return "\n".join([*head, r"\begin{document}", *map(latex_table, tables), r"\end{document}"]) + "\n"
