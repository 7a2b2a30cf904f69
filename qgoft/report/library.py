"""Records that tables are made from, with the directory of each run."""

import functools
from dataclasses import dataclass, field
from pathlib import Path

from qgoft.config.locations import MEASURED
from qgoft.records import RecordSet, find_records
from qgoft.report.significance import Bootstrap
from qgoft.sweep.record_index import RecordIndex


@dataclass
class RecordLibrary:
    """Records, and the directory of each.

    Attributes:
        directories: key of a record -> its directory.
        problems: files that could not be read, with the reason.
        root: results root.
        is_committed: the records are those of results/measured.
    """

    index: RecordIndex
    directories: dict[str, Path]
    problems: list[str] = field(default_factory=list)
    root: Path = Path("results")
    is_committed: bool = False

    @classmethod
    def read(cls, *roots: Path) -> "RecordLibrary":
        """Read all records below some directories."""
        found = [_find(root) for root in roots if root.is_dir()]
        records = [record for one in found for record in one.records]
        directories = {key: directory for one in found for key, directory in one.directories.items()}
        return cls(RecordIndex(records), directories, [problem for one in found for problem in one.problems])

    @functools.cached_property
    def bootstrap(self) -> Bootstrap:
        return Bootstrap(self.directories)


def _find(root: Path) -> RecordSet:
    """Find records; the committed ones do not change while a command runs."""
    return _find_measured() if root.resolve() == MEASURED.resolve() else find_records(root)


@functools.cache
def _find_measured() -> RecordSet:
    return find_records(MEASURED)


def read_library(root: Path, records: str, protocol: str) -> RecordLibrary:
    """Read the records of a user (`runs`) or the committed ones (`measured`).

    Protocol pocket also gets the directories of the committed records, whose controls are shown in its tables.
    """
    is_committed = records == MEASURED.name
    library = RecordLibrary.read(MEASURED if is_committed else root / records)
    library.root, library.is_committed = root, is_committed
    if protocol == "pocket":
        library.directories = {**_find_measured().directories, **library.directories}
    return library
