"""Other tasks of a run's protocol, with the run's backbone."""

import dataclasses
import functools

from qgoft.config.compose import compose_settings
from qgoft.config.settings import RunSettings
from qgoft.retention.probes import ProbeContext
from qgoft.run_id import RunId
from qgoft.tasks.sources import resolve_data, split_names


def compose_task(context: ProbeContext, name: str) -> RunSettings:
    """Return the settings of another task under the protocol of a run, with its backbone and source of rows.

    Args:
        name: suite/task.

    Raises:
        QgoftError: the protocol does not support the task.
    """
    run, other = context.settings, _compose(context.settings.protocol, name)
    # A commit belongs to one repository.
    revision = run.data.revision if other.task.hub == run.task.hub else other.data.revision
    return dataclasses.replace(other, model=run.model, data=dataclasses.replace(run.data, revision=revision))


def locate(context: ProbeContext, settings: RunSettings) -> RunId:
    """Return the identity of a task that is only evaluated: its rows, and the model of the run.

    Raises:
        QgoftError: the rows are not available.
    """
    data = resolve_data(settings.task, settings.data, split_names(settings.task, settings.eval_scheme))
    return dataclasses.replace(context.run_id, data=data)


@functools.cache
def _compose(protocol: str, name: str) -> RunSettings:
    """Compose a task with a method that every protocol has."""
    return compose_settings([f"protocol={protocol}", f"task={name}", "method=lora"])
