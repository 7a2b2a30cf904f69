"""Notes under a score table: seeds, splits, selection, subsets, and warnings about mixed origins."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from qgoft.config.settings import method_label
from qgoft.records import Record, code_checksum
from qgoft.report.items import SETUP, Item
from qgoft.report.names import METHODS, display_name
from qgoft.report.published import PublishedRow, format_value, printed_averages, printed_cells
from qgoft.report.row import Row
from qgoft.sweep.forecast import format_runs

# Method -> explanation of another printed count.
COUNT_NOTES = {
    "oft": "#Param of oft: peft trains the skew-symmetric entries; oft_paper has the full b x b blocks that the paper counts",
}
EVAL_SCHEMES = {
    "test": "test split",
    "halves": "second half of validation",
    "validation": "validation split",
    "seeded_halves": "second half of validation, shuffled by the seed",
    "whole": "test split, trained on all 1,000 rows",
    "train800": "test split, trained on the 800 rows of train",
}
SELECTIONS = {
    "last": "last step, no selection",
    "best_validation": "checkpoint selected on validation",
    "best_reported": "best score on the reported split (not comparable)",
}


def build_notes(rows: Sequence[Row], published: Sequence[PublishedRow], item: Item, is_comparable: bool) -> list[str]:
    """Return the notes of a table.

    Args:
        published: printed rows of the item.
        is_comparable: the table contains the printed rows; otherwise they are notes.
    """
    records = [record for row in rows for record in row.all()]
    if not records:
        return ["no finished run yet"]
    own = [record for row in rows if not row.is_context for record in row.all()] or records
    notes = [_seeds_note(own, item)]
    if SETUP in item.extra_columns:
        notes.append("start s: loading of weights and data, and the decomposition; published: the decomposition only")
    if any(row.is_context for row in rows):
        seeds = {record["seed"] for row in rows if row.is_context for record in row.all()}
        notes.append(f"* from results/measured (committed records, n = {len(seeds)}), for comparison")
    if any(row.is_altered for row in rows):
        notes.append("(altered): the command line changed settings of the protocol")
    built = sorted({display_name(record["method"]) for record in own if record["method"] not in METHODS})
    notes += [f"#Param of {', '.join(built)}: as built, without a formula to check it"] if built else []
    if is_comparable:
        notes += [note for method, note in COUNT_NOTES.items() if any(record["method"] == method for record in own)]
    else:
        notes += _published_notes(own, published, item)
    notes += _data_notes(own)
    sources = {source for row in rows if not row.is_context for source in row.sources}
    sources = sources or {record["settings"]["method"]["lr_source"] for record in own}
    notes.append(f"learning rates: {'; '.join(sorted(re.sub(r'^own', 'chosen by this project', source) for source in sources))}")
    return [*notes, *_left_out_notes(rows), *_origin_notes(own)]


def _seeds_note(records: Sequence[Record], item: Item) -> str:
    seeds = len({record["seed"] for record in records})
    splits = ", ".join(sorted({EVAL_SCHEMES[record["settings"]["eval_scheme"]] for record in records}))
    selections = ", ".join(sorted({SELECTIONS[record["selection"]] for record in records}))
    spread = ", ± standard deviation over seeds" if seeds > 1 else ""
    protocol = f"{splits}; {selections}" if item.columns else selections  # costs belong to no split
    return f"n = {seeds} seed{'s' if seeds > 1 else ''}{spread}; {protocol}; #Param without the head"


def _published_notes(records: Sequence[Record], published: Sequence[PublishedRow], item: Item) -> list[str]:
    """Return the printed rows of the methods of a table whose data differ from those of the paper."""
    notes = []
    for method in dict.fromkeys(record["method"] for record in records):
        for row in (row for row in published if row.method == method):
            cells = printed_cells(row, item)
            costs = cells[-len(item.extra_columns) :] if item.extra_columns and row.values else []
            averages = printed_averages(row, item)
            average = f" | {format_value(averages[-1])}" if averages else ""
            shown = "  ".join([*cells[: len(item.columns)], *costs])
            notes.append(f"published {published_name(row)} ({item.printed_model}, other data; context only): {shown}{average}")
    return notes


def published_name(row: PublishedRow) -> str:
    """Return the label of a printed row, with its targets and penalty weight if it states them."""
    penalty = "" if row.penalty is None else f", penalty {row.penalty:g}"
    return f"{method_label(row.method, row.variant or row.method)}{'' if row.targets is None else f', {row.targets}'}{penalty}"


def _data_notes(records: Sequence[Record]) -> list[str]:
    notes = []
    subsets = {r["task"]: r["provenance"]["data"]["rows"] for r in records if r["provenance"]["data"]["subset"]}
    if subsets:
        shown = "; ".join(f"{task} " + ", ".join(f"{split} {count:,}" for split, count in rows.items()) for task, rows in subsets.items())
        notes.append(f"subset: rows differ from the official splits, not comparable with published values: {shown}")
    fixes = {(r["task"], fix, count) for r in records for fix, count in r["provenance"]["data"].get("data_fixes", {}).items()}
    return [*notes, *(f"data of {task}: {count} {fix}" for task, fix, count in sorted(fixes))]


def _left_out_notes(rows: Iterable[Row]) -> list[str]:
    notes = []
    if left_out := sum(row.left_out for row in rows):
        notes.append(f"warning: excluded {format_runs(left_out)} that differ in data or weights from the newest run of the row")
    if others := sum(row.others for row in rows):
        notes.append(
            f"warning: not shown: {format_runs(others)} with the same settings but different data, weights or number of processes; the newest is shown, "
            "or the one on the data of DATA="
        )
    return notes


def _origins(record: Record) -> list[dict[str, Any]]:
    """Return the provenance of a run, and that of its shared training."""
    provenance = record["provenance"]
    return [part for part in (provenance, provenance.get("training", {}).get("by", {})) if "commit" in part]


def _origin_notes(records: Sequence[Record]) -> list[str]:
    """Warn if the records of one table were made with different code, packages or hardware."""
    made_by = [part for record in records for part in _origins(record)]
    notes = []
    commits = {part["commit"] for part in made_by}
    if len(commits) > 1:
        notes.append(f"warning: these records come from {len(commits)} commits of the code")
    if any(part.get("dirty") for part in made_by):
        notes.append("warning: some records come from uncommitted code (dirty)")
    stale = sum(any(part.get("code", code_checksum()) != code_checksum() for part in _origins(record)) for record in records)
    if stale:
        notes.append(f"warning: {stale} of {len(records)} runs were made by a different version of the code; delete them to rerun")
    versions: dict[str, set[str]] = {}
    for part in made_by:
        for name, version in part.get("packages", {}).items():
            if name != "qgoft":
                versions.setdefault(name, set()).add(version)
    mixed = [f"{name} {', '.join(sorted(found))}" for name, found in sorted(versions.items()) if len(found) > 1]
    if mixed:
        notes.append(f"warning: these records come from different package versions: {'; '.join(mixed)}")
    for name, text in (
        ("device", "devices"),
        ("threads", "thread counts, which affects rounding"),
        ("givens", "backends of the Givens operator, which affects rounding"),
    ):
        found = sorted({str(part["hardware"][name]) for part in made_by if name in part.get("hardware", {})})
        if len(found) > 1:
            notes.append(f"warning: these records come from different {text}: {', '.join(found)}")
    return notes
