"""Plans of suites for tests."""

from qgoft.commands import sweep


def suite_runs(words):
    """Return the planned runs of a suite, from the arguments of the command."""
    return sweep.suite_runs(sweep.parse(words))[1]
