"""The suites of tasks, each by its name in the settings."""

from qgoft.errors import choose
from qgoft.ledger import Identity
from qgoft.settings import RunSettings
from qgoft.train.suites.base import Suite
from qgoft.train.suites.glue import Glue
from qgoft.train.suites.squad import Squad
from qgoft.train.suites.vtab import Vtab

SUITES: dict[str, type[Suite]] = {"glue": Glue, "squad": Squad, "vtab": Vtab}


def build_suite(settings: RunSettings, identity: Identity) -> Suite:
    """Load the rows of a run's task.

    Raises:
        QgoftError: an unknown suite, or something is wrong with the rows.
    """
    choose("suite", settings.task.suite, list(SUITES), "change task")
    return SUITES[settings.task.suite](settings, identity)


__all__ = ["SUITES", "Suite", "build_suite"]
