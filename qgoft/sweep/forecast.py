"""Expected duration of planned runs."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from qgoft.config.suites import suite_info
from qgoft.records import Record
from qgoft.sweep.planned_run import PlannedRun

# (suite, method) and (suite,) -> mean seconds of a run.
MeanSeconds = dict[tuple[str, ...], float]


def mean_seconds(records: Sequence[Record], protocol: str) -> MeanSeconds:
    """Return the mean seconds of the finished runs of a protocol, by suite and method, and by suite."""
    known: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for record in records:
        if record["protocol"] == protocol and record["status"] == "done":
            begun, ended = (datetime.fromisoformat(record[name]) for name in ("started", "finished"))
            seconds = (ended - begun).total_seconds()
            if "resumed" in record["provenance"]:  # `started` is that of the last part
                seconds = max(seconds, (record["cost"].get("setup_seconds") or 0.0) + (record["cost"]["seconds"] or 0.0))
            if seconds >= 0:  # otherwise the clock was set back
                known[record["suite"], record["method"]].append(seconds)
                known[(record["suite"],)].append(seconds)
    return {place: statistics.fmean(times) for place, times in known.items()}


def sum_seconds(known: MeanSeconds, protocol: str, runs: Iterable[tuple[str, str, int]]) -> float | None:
    """Return the expected seconds of runs (suite, method, number) one after the other; None if unknown."""
    total = 0.0
    for suite, method, number in runs:
        seconds = known.get((suite, method), known.get((suite,), suite_info(suite).seconds.get(protocol)))
        if seconds is None:
            return None
        total += seconds * number
    return total


def expected_seconds(planned: Sequence[PlannedRun], records: Sequence[Record], protocol: str) -> float | None:
    """Return the expected seconds of planned runs one after the other; None if unknown."""
    runs = ((run.settings.task.suite, run.settings.method.name, 1) for run in planned)
    return sum_seconds(mean_seconds(records, protocol), protocol, runs)


def announce(
    title: str, planned: Sequence[PlannedRun], pending: Sequence[PlannedRun], records: Sequence[Record], jobs: int, protocol: str
) -> None:
    """Print how many runs are planned and done, and the expected time of the pending ones."""
    jobs = max(1, min(jobs, len(pending)))
    on = f"on {jobs} process{'es' if jobs > 1 else ''}"
    seconds = expected_seconds(pending, records, protocol)
    if not pending:
        forecast = "nothing left to do"
    elif seconds is None:
        forecast = f"{on}; the time is not known yet"
    else:
        forecast = f"about {format_duration(seconds / jobs)} {on}"
    print(f"{title}, protocol {protocol}: {format_runs(len(planned))} planned, {len(planned) - len(pending)} done, {forecast}", flush=True)


def format_runs(number: int) -> str:
    """Return `1 run`, `2 runs`."""
    return f"{number} run{'' if number == 1 else 's'}"


def format_duration(seconds: float) -> str:
    """Return `1 min 40 s`, from 100 minutes on `1 h 45 min`."""
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 100 else f"{minutes} min {int(seconds) % 60:02d} s"
