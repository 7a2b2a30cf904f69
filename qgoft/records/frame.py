"""Records as a table with one row per run: `qgoft.load_results`."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qgoft.errors import INSTALL, QgoftError
from qgoft.records.find import find_records
from qgoft.records.flat import flat_row

if TYPE_CHECKING:
    import pandas

# Columns that may hold no value: counts stay integers.
TYPES = dict.fromkeys(("n", "params", "peak_memory_bytes"), "Int64") | dict.fromkeys(
    ("score", "standard_error", "seconds", "orthogonality", "retention"), "float64"
)


def load_results(paths: str | Path | Sequence[str | Path]) -> "pandas.DataFrame":
    """Load finished and failed runs as a data frame with one row per run, sorted by protocol, suite, task, label and seed.

    Columns: protocol, suite, task, model, method, variant, label (lora@r8), seed, overrides (settings that differ from the protocol's and
    affect results, as name=value), status, score (of the primary metric, on the suite's scale), metric, n (scored items), standard_error
    (over items), params (trainable, without the head), seconds (of training), peak_memory_bytes, orthogonality (max |R^T R - I| over the
    layers), retention (percent of the backbone's other abilities, if measured), key and commit.

    Args:
        paths: directories of runs (results/runs), archives (results/measured/pocket), directories with several of them, or records.parquet
            files. Runs that are found twice count once: of two results, the last.

    Raises:
        QgoftError: a path does not exist, or none has a record.
        ModuleNotFoundError: the extra `suite` is not installed.

    Warns:
        UserWarning: a record is corrupt, modified or of another version and left out, or two results of one run differ.
    """
    try:
        import pandas
        import pyarrow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"qgoft.load_results needs {error.name}, of the extra `suite`: {INSTALL}") from error

    roots = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    for root in roots:
        if not root.exists():
            raise QgoftError(f"{root}: no such file or directory; expected runs or an archive of runs, such as results/measured/pocket")
    found = find_records(*roots)
    for problem in found.problems:
        warnings.warn(problem, stacklevel=2)
    if not found.records:
        raise QgoftError(f"{', '.join(map(str, roots))}: no record; expected runs or an archive of runs, such as results/measured/pocket")
    files = found.files
    kept = [files[r["key"]].retention() if r["key"] in files else None for r in found.records]
    frame = pandas.DataFrame([flat_row(record, retention) for record, retention in zip(found.records, kept, strict=True)])
    order = ["protocol", "suite", "task", "label", "model", "seed", "key"]
    return frame.astype(TYPES).sort_values(order, ignore_index=True)
