"""Lookup of the suite of a task (configs/suite)."""

from typing import cast

from qgoft.config.settings import RunSettings
from qgoft.config.suites import suite_info
from qgoft.run_id import RunId
from qgoft.tasks.base import Suite


def suite_class(settings: RunSettings) -> type[Suite]:
    """Return the class of a task's suite.

    Raises:
        QgoftError: an unknown suite or task.
    """
    return cast(type[Suite], suite_info(settings.task.suite).implementation_of(settings.task.name))


def build_suite(settings: RunSettings, run_id: RunId) -> Suite:
    """Load the data of a run's task.

    Raises:
        QgoftError: an unknown suite, or invalid data.
    """
    return suite_class(settings)(settings, run_id)
