"""Tables of a benchmark record."""

import math
import statistics
from typing import Any

from qgoft.report.published import load_figures
from qgoft.report.table import Table

Record = dict[str, Any]
Timing = dict[str, Any]


def step_seconds(timing: Timing) -> list[float]:
    """Return the seconds of forward, backward and update of every repeat."""
    return [sum(parts) for parts in zip(timing["forward"], timing["backward"], timing["update"], strict=True)]


def ratios(ours: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Return median and interquartile range of ours / reference, per repeat."""
    values = [a / b for a, b in zip(ours, reference, strict=True)]
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


def fit_slope(widths: list[int], seconds: list[float]) -> float:
    """Return the exponent p of cost ~ d^p by least squares on logarithms."""
    x, y = [math.log(d) for d in widths], [math.log(s) for s in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def find_reference(group: list[Timing], name: str) -> Timing:
    return next(timing for timing in group if timing["name"] == name)


def shape_table(number: int, line: Record, record: Record) -> Table:
    """Return the table of one shape: the step of every contender, its ratio to the reference in the same repeats, and its bytes."""
    name = record["reference"]
    table = Table(
        f"bench-{line['part']}{number}",
        line["shape"],
        ["", "trainable", "forward s", "backward s", "step s", f"x {name}", "middle half", "kept MB", "peak MB", "peak x"],
        has_methods=True,
    )
    for number_of_group, group in enumerate(line["groups"]):
        reference = find_reference(group, name)
        is_part = group[0]["batch"] != line["groups"][0][0]["batch"]
        if is_part:
            table.rules_before.append(len(table.rows))
        for timing in group:
            if timing is reference and number_of_group and not is_part:
                continue  # timed again with every contender that has its own group
            median, low, high = ratios(step_seconds(timing), step_seconds(reference))
            table.rows.append(
                [
                    timing["name"] + (f", batch {timing['batch']}" if is_part else ""),
                    f"{timing['trainable']:,}",
                    *(f"{statistics.median(timing[phase]):.3f}" for phase in ("forward", "backward")),
                    f"{statistics.median(step_seconds(timing)):.3f}",
                    f"{median:.2f}",
                    f"{low:.2f}-{high:.2f}",
                    f"{timing['saved_bytes'] / 1e6:.0f}",
                    f"{timing['peak_bytes'] / 1e6:.0f}",
                    f"{timing['peak_bytes'] / reference['peak_bytes']:.2f}",
                ]
            )
        table.notes += overhead_notes(group, name)
    if len(line["groups"]) > 1:
        table.notes.append(
            f"a ratio is to the {name} that took turns with the row, in processes of their own; seconds of different rows are not"
        )
    return table


OPERATOR, WHOLE = ("apply", "transpose", "gradients"), "forward and backward"


def overhead_notes(group: list[Timing], reference_name: str) -> list[str]:
    """Return a note with the time that methods add to the frozen weights, in that of the reference, if the frozen weights took turns."""
    frozen = next((step_seconds(timing) for timing in group if timing["name"] == "frozen"), None)
    if frozen is None:
        return []

    def added(timing: Timing) -> list[float]:
        return [ours - base for ours, base in zip(step_seconds(timing), frozen, strict=True)]

    reference = added(find_reference(group, reference_name))
    others = [timing for timing in group if timing["name"] not in ("frozen", reference_name)]
    parts = ["{} {:.2f} ({:.2f}-{:.2f})".format(timing["name"], *ratios(added(timing), reference)) for timing in others]
    return [f"time added to the frozen weights, {reference_name} = 1: {', '.join(parts)}"] if parts else []


def product_table(record: Record) -> Table:
    """Return the table of the product by width: milliseconds, in copies of the rows, and the sparse chains in products."""
    by_width: dict[int, dict[str, list[float]]] = {}
    for line in record["products"]:
        by_width.setdefault(line["width"], {})[line["name"]] = line["seconds"]
    sparse = [name for name in dict.fromkeys(line["name"] for line in record["products"]) if name not in ("copy", *OPERATOR, WHOLE)]
    table = Table(
        "bench-product",
        f"the product alone, {record['products'][0]['rows']} rows, float32",
        [
            "width",
            "copy ms",
            *(f"{name} ms" for name in OPERATOR),
            *(f"{name} / copy" for name in OPERATOR),
            *(f"{name} x" for name in sparse),
        ],
    )
    for width, found in by_width.items():
        times = [f"{1e3 * statistics.median(found[name]):.2f}" for name in ("copy", *OPERATOR)]
        copies = ["{:.2f} ({:.2f}-{:.2f})".format(*ratios(found[name], found["copy"])) for name in OPERATOR]
        chains = [f"{ratios(found[name], found[WHOLE])[0]:.0f}" if name in found else "-" for name in sparse]
        table.rows.append([str(width), *times, *copies, *chains])
    table.notes.append(
        "in brackets the middle half of the repeats; gradients reads two matrices of rows and writes one, with those of the blocks"
    )
    if sparse:
        table.notes.append(f"x: times as long as the product, {WHOLE}")
    widths = list(by_width)
    if len(widths) > 1:
        slope = fit_slope(widths, [statistics.median(by_width[width][WHOLE]) for width in widths])
        table.notes.append(f"cost of the product grows as d^{slope:.2f} from {widths[0]} to {widths[-1]}")
    return table


def published_tables(record: Record) -> list[Table]:
    """Return the printed figures of every table that a timed shape belongs to."""
    items = list(dict.fromkeys(line["item"] for line in record["shapes"] if line["item"])) or ["goft-icml2024/table10"]
    tables = []
    for item in items:
        paper, name = item.split("/")
        tables.append(published_table(f"bench-published-{name}", paper, name))
    return tables


def published_table(name: str, paper: str, printed_name: str) -> Table:
    """Return the printed costs of one table."""
    printed = load_figures(paper, printed_name)
    rows = [[row, *("-" if value is None else str(value) for value in values)] for row, values in printed["rows"].items()]
    return Table(name, f"published, {paper} {printed_name}: {printed['title']}", ["", *printed["columns"]], rows, has_methods=True)


def all_tables(record: Record) -> list[Table]:
    tables = [shape_table(number, line, record) for number, line in enumerate(record["shapes"])]
    if record["products"]:
        tables.append(product_table(record))
    return [*tables, *published_tables(record)]


def full_batch(line: Record, reference_name: str) -> list[tuple[Timing, Timing]]:
    """Return every contender timed with the whole batch, and the reference timed with it."""
    batch = line["groups"][0][0]["batch"]
    groups = [group for group in line["groups"] if group[0]["batch"] == batch]
    return [(timing, find_reference(group, reference_name)) for group in groups for timing in group if timing["name"] != reference_name]
