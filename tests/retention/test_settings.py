"""Settings of retention: those of the protocols, and overrides with one-line errors."""

import importlib.util

import pytest

from qgoft.config.retention import retention_settings
from qgoft.config.suites import config_names, suite_info, suite_names, tasks_of
from qgoft.errors import QgoftError


@pytest.mark.parametrize("protocol", config_names("protocol"))
def test_protocols(protocol):
    """Every protocol has probes for the suites that it runs, of tasks that exist."""
    for suite in suite_names():
        try:
            settings = retention_settings(protocol, suite)
        except QgoftError as error:
            known = "lm-eval, which may have it, is not installed" if suite_info(suite).is_decoder else "no retention probes"
            assert "no retention probes" in str(error) or known in str(error)  # noqa: PT017 - both outcomes are checked
            continue
        assert settings.steps == [0, 0.25, 0.5, 0.75, 1]
        assert all(task.partition("/")[2] in tasks_of(task.partition("/")[0]) for task in settings.tasks)
        assert not {"transfer"} & set(settings.probes) or settings.tasks


def test_overrides():
    settings = retention_settings(
        "pocket", "glue", ["retention.steps=0,0.5,1", "retention.probes=[transfer,similarity]", "retention.test_rows=50"]
    )
    assert settings.steps == [0, 0.5, 1]
    assert settings.probes == ["transfer", "similarity"]
    assert settings.test_rows == 50
    assert retention_settings("pocket", "glue", ["retention.steps=1"]).steps == [1]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retention.steps=0,1.5", r"retention.steps\[1\] is 1.5; allowed are 0 to 1"),
        ("retention.steps=-0.1", r"retention.steps\[0\] is -0.1; allowed are 0 to 1"),
        (
            "retention.probes=[langage]",
            r"langage is not a probe of suite glue \(encoder\); allowed are transfer, similarity \(did you mean language",
        ),
        ("retention.probes=[language]", "language is not a probe of suite glue"),
        ("retention.tasks=[glue/rtee]", "unknown task 'glue/rtee'.*did you mean glue/rte"),
        ("retention.text=/no/such/file", "retention.text=/no/such/file cannot be read"),
        ("retention.steps=[]", "1 is missing, the tuned backbone"),
        ("retention.steps=0,0.5", "1 is missing, the tuned backbone"),
        ("retention.steps=1,1", "repeats a value"),
        ("retention.steps=a", r"retention.steps\[0\] is 'a' of type str"),
        ("retention.probes=[]", "no retention probes"),
        ("retention.probe=x", "unknown setting retention.probe; allowed here are ask_judge, positions"),
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


def test_task_of_lm_eval_without_lm_eval(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(QgoftError, match="bbh is not a probe of this package, and lm-eval"):
        retention_settings("pocket", "math", ["retention.probes=[bbh]"])


def test_text_is_part_of_the_settings(tmp_path):
    """A changed text is another measurement."""
    path = tmp_path / "text"
    path.write_text("one")
    first = retention_settings("pocket", "math", [f"retention.text={path}"])
    path.write_text("two")
    assert retention_settings("pocket", "math", [f"retention.text={path}"]).text_sha256 != first.text_sha256
