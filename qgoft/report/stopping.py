"""Runs that end earlier against the path of the full run: retention at the same target score."""

from collections.abc import Sequence

from qgoft.report.retention_rows import DRAWS, RetentionRow, format_estimate, format_mean, retention_gap_at_equal_target, suite_table
from qgoft.report.table import Table

SETTING = "train.max_steps"


def is_stopped(row: RetentionRow) -> bool:
    """Return True if only the number of steps of a row differs from the protocol."""
    return set(row.own_settings) == {SETTING}


def build_stopping(rows: Sequence[RetentionRow], protocol: str, suite: str) -> Table | None:
    """Return one row per method and number of steps, or None if no run of a measured method ended earlier."""
    full = {row.method: row for row in rows if not row.own_settings}
    stopped = [row for row in rows if is_stopped(row) and row.method in full and row.places()]
    if not stopped:
        return None
    columns = ["method", "steps", "target", "retention %", "full target", "full retention %", "rewound minus stopped"]
    table = suite_table("stopping", "Rewinding or stopping", protocol, suite, columns)
    for row in sorted(stopped, key=lambda row: (row.method, int(row.own_settings[SETTING]))):
        whole = full[row.method]
        cells = [format_mean(values) for values in (row.targets(), row.retentions(), whole.targets(), whole.retentions())]
        gap = retention_gap_at_equal_target(whole, row, rewinds_baseline=False)
        line = len(table.rows)
        table.add_row([row.method, row.own_settings[SETTING], *cells, format_estimate(gap)], row.keys())
        for column in range(columns.index("full target"), len(columns)):
            table.sources[line, column] += whole.keys()
    table.notes = [
        "steps: of the run that ended earlier, with a learning rate schedule of its own; full: the run with the protocol's number of steps",
        "rewound minus stopped: retention of the full run, rewound to the target score of the stopped run, minus that of the stopped run, with the "
        f"95% interval over {DRAWS} draws of tasks and seeds; where the full run's path stays below that score, at its highest score",
    ]
    return table
