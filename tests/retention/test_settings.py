"""Settings of retention: those of the protocols, and overrides with one-line errors."""

import pytest

from qgoft.config.retention import retention_settings
from qgoft.config.suites import config_names, suite_names, tasks_of
from qgoft.errors import QgoftError


@pytest.mark.parametrize("protocol", config_names("protocol"))
def test_protocols(protocol):
    """Every protocol has probes for the suites that it runs, of tasks that exist."""
    for suite in suite_names():
        try:
            settings = retention_settings(protocol, suite)
        except QgoftError as error:
            assert "no retention probes" in str(error)  # noqa: PT017 - both outcomes are checked
            continue
        assert settings.steps == [0, 0.25, 0.5, 0.75, 1]
        assert all(task.partition("/")[2] in tasks_of(task.partition("/")[0]) for task in settings.tasks)
        assert not {"transfer"} & set(settings.probes) or settings.tasks


def test_overrides():
    settings = retention_settings(
        "pocket", "glue", ["retention.steps=0,0.5,1", "retention.probes=[transfer,bbh]", "retention.test_rows=50"]
    )
    assert settings.steps == [0, 0.5, 1]
    assert settings.probes == ["transfer", "bbh"]
    assert settings.test_rows == 50
    assert retention_settings("pocket", "glue", ["retention.steps=1"]).steps == [1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retention.steps=0,1.5", r"retention.steps\[1\] is 1.5; allowed are 0 to 1"),
        ("retention.steps=-0.1", r"retention.steps\[0\] is -0.1; allowed are 0 to 1"),
        ("retention.steps=[]", "retention.steps is empty"),
        ("retention.steps=0,0", "names a value twice"),
        ("retention.steps=a", r"retention.steps\[0\] is 'a' of type str"),
        ("retention.probes=[]", "no retention probes"),
        ("retention.probe=x", "unknown setting retention.probe; allowed here are positions, probes"),
        ("retention.test_rows=0", "retention.test_rows is 0"),
        ("retention.steps", "expected retention.<setting>=<value>"),
    ],
)
def test_invalid(override, message):
    with pytest.raises(QgoftError, match=message):
        retention_settings("pocket", "glue", [override])


def test_suite_without_probes():
    with pytest.raises(QgoftError, match=r"protocol small has no retention probes for suite vtab"):
        retention_settings("small", "vtab")
