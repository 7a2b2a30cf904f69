"""Records that tables are made from, with the curves and answers of the runs."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from qgoft.config.locations import MEASURED
from qgoft.records import RecordSet, RunFiles, find_records
from qgoft.report.significance import Bootstrap
from qgoft.report.style import PLAIN, TableStyle
from qgoft.sweep.record_index import RecordIndex


@dataclass
class RecordLibrary:
    """Records, with the curve and answers of each.

    Attributes:
        files: key of a record -> its curve and answers.
        problems: files that could not be read, with the reason.
        root: results root.
        is_committed: the records are those of results/measured.
        style: of the score tables.
    """

    index: RecordIndex
    files: dict[str, RunFiles]
    problems: list[str] = field(default_factory=list)
    root: Path = Path("results")
    is_committed: bool = False
    style: TableStyle = PLAIN

    @classmethod
    def read(cls, *roots: Path) -> "RecordLibrary":
        """Read all records below some directories."""
        found = [_find(root) for root in roots if root.is_dir()]
        records = [record for one in found for record in one.records]
        files = {key: some for one in found for key, some in one.files.items()}
        return cls(RecordIndex(records), files, [problem for one in found for problem in one.problems])

    @functools.cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.files)


def _find(root: Path) -> RecordSet:
    """Find records; the committed ones do not change while a command runs."""
    return _find_measured() if root.resolve() == MEASURED.resolve() else find_records(root)


@functools.cache
def _find_measured() -> RecordSet:
    return find_records(MEASURED)


def read_library(root: Path, records: str, protocol: str, style: TableStyle = PLAIN) -> RecordLibrary:
    """Read the records of a user (`runs`) or the committed ones (`measured`).

    Protocol pocket also gets the curves and answers of the committed records, whose controls are shown in its tables.
    """
    is_committed = records == MEASURED.name
    library = RecordLibrary.read(MEASURED if is_committed else root / records)
    library.root, library.is_committed, library.style = root, is_committed, style
    if protocol == "pocket":
        library.files = {**_find_measured().files, **library.files}
    return library
