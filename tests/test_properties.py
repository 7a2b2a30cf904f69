"""Properties for every input: readers of foreign text, records, tables, the rotation. A hundred inputs each; QGOFT_EXAMPLES=10000 tries as
many. Inputs that failed once are an @example."""

import copy
import csv
import io
import json
import math
import os
import statistics
import unicodedata
from fractions import Fraction
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qgoft import records
from qgoft.errors import QgoftError
from qgoft.judge.f1_judge import rate
from qgoft.judge.ratings import HIGHEST, LOWEST, NoRating, read_rating
from qgoft.lease import Lease, LeaseHeld, LeaseLost
from qgoft.ops.givens.blocks import rotation_blocks
from qgoft.ops.givens.reference import reference_matrix
from qgoft.records import RecordError
from qgoft.report import table as layout
from qgoft.report.latex import latex_table
from qgoft.report.row import Row
from qgoft.report.score_table import build_table
from qgoft.report.table import Table
from qgoft.tasks.decoder import answer_parsing as answers
from qgoft.tasks.vtab.files import read_list
from tests.records.test_records import RECORD
from tests.report.test_score_tables import GOFT_TASKS, rows_of
from tests.report.test_score_tables import record as score_record

EXAMPLES = int(os.environ.get("QGOFT_EXAMPLES", "100"))
settings.register_profile("here", max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
settings.load_profile("here")

# Text similar to the expected form.
PIECES = [
    "the answer is",
    "The answer is:",
    "####",
    "\\boxed{",
    "\\fbox",
    "\\frac{",
    "\\dfrac",
    "{",
    "}",
    "[[",
    "]]",
    "[",
    "]",
    "-",
    ".",
    ",",
    "/",
    "$",
    " ",
    "%",
]
PIECES += [
    "0",
    "7",
    "12",
    "1,000",
    "9" * 5000,
    "٣",
    "²",
    "e9",
    "_",
    "=",
    "x=",
    "\\text{even}",
    "\n",
    "\u2028",
    "\x00",
    "answer1",
    "answer10",
    "ANSWER2",
]
near = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=12).map("".join)


def outcome(kind, function, *arguments):
    """Return the result, or the text of the expected error."""
    try:
        return function(*arguments), ""
    except kind as error:
        return None, str(error)


@given(near)
@example("[[" + "9" * 400 + "]]")
def test_rating_in_range_or_none(text):
    rating, reason = outcome(NoRating, read_rating, text)
    if reason:
        assert reason in ("no rating", "several ratings", "rating outside 1 to 10")
        return
    assert LOWEST <= rating <= HIGHEST
    assert read_rating(text + text) == rating


@given(near)
@example("#### 1e999999999")
@example("the answer is 1/" + "9" * 5000)
def test_read_number_is_a_fraction_or_none(text):
    for found in (answers.read_number(text), answers.reference_number(text), answers.to_fraction(text)):
        assert found is None or isinstance(found, Fraction)


@given(near, near)
@example("\\frac{" + "9" * 5000 + "}{1}", "1")
def test_formula_comparison_never_raises(one, other):
    assert answers.same_formula(one, one)
    assert answers.same_formula(one, other) == answers.same_formula(other, one)
    found = answers.read_formula(one)
    assert found is None or answers.normalise_formula(answers.normalise_formula(found)) is not None


@given(near, st.sampled_from([["answer1", "answer2", "answer10"], ["true", "false"]]))
def test_choice_is_a_label(text, labels):
    assert answers.read_choice(text, labels) in (None, *labels)
    assert answers.read_choice(f"({labels[-1]})", labels) == labels[-1]


@given(st.text(max_size=40), st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_rule_judge_prefers_the_right_answer(answer, right):
    rating, reason = rate(answer, right)
    assert LOWEST <= rating <= HIGHEST
    assert reason
    assert rate(right[0], right)[0] == HIGHEST


@given(st.binary(max_size=60) | near.map(str.encode))
@example("a.png \u00b2".encode())
@example(b"\xff.png 1")
@example(b"a" * 300 + b" 1")
def test_list_file_is_read_or_refused(tmp_path_factory, content):
    directory = tmp_path_factory.getbasetemp() / "list"
    directory.mkdir(exist_ok=True)
    (directory / "train800.txt").write_bytes(content)
    found, reason = outcome(QgoftError, read_list, directory / "train800.txt")
    assert "\n" not in reason
    assert reason or all(image.is_relative_to(directory.resolve()) for image, _ in found or [])


@given(
    st.binary(max_size=80)
    | st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), st.lists).map(json.dumps).map(str.encode)
)
@example(b"[" * 100_000)
@example(b'[1]\n{"step": null, "loss": 1.0}')
@example(b"\xff")
@example(b'{"step": 1, "loss": 1e999}')
def test_jsonl_reads_complete_lines(tmp_path_factory, content):
    directory = tmp_path_factory.getbasetemp() / "lines"
    directory.mkdir(exist_ok=True)
    (directory / "history.jsonl").write_bytes(b'{"step": 1, "loss": 2.5}\n' + content)
    points = records.read_curve(directory, "loss")
    assert points[0] == (1, 2.5)
    assert all(math.isfinite(value) for _, value in points)
    lines = records.read_tagged(directory / "history.jsonl", {"step": 1, "loss": 2.5})
    assert isinstance(lines, list)


@given(st.integers(min_value=0), st.integers(min_value=0, max_value=40), st.binary(max_size=20))
@example(0, 10_000, b"")
def test_record_round_trip_or_refused(tmp_path_factory, place, length, instead):
    """Any part of it is replaced by anything."""
    directory = tmp_path_factory.getbasetemp() / "record"
    path = records.write_record(directory, copy.deepcopy(RECORD))
    content = path.read_bytes()
    start = place % len(content)
    path.write_bytes(content[:start] + instead + content[start + length :])
    found, reason = outcome(RecordError, records.read_record, path)
    assert str(path) in reason or found == RECORD


@given(st.binary(max_size=80))
@example(b"[" * 100_000)
@example(b"{}")
@example(b"[]")
def test_arbitrary_json_is_not_a_record(tmp_path_factory, content):
    directory = tmp_path_factory.getbasetemp() / "no-record"
    directory.mkdir(exist_ok=True)
    (directory / "record.json").write_bytes(content)
    with pytest.raises(RecordError):
        records.read_record(directory / "record.json")


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_canonical_json_is_unique(data):
    text = records.canonical_json(data)
    assert records.canonical_json(json.loads(text)) == text
    assert json.loads(text) == data


@given(st.lists(st.text(max_size=12), min_size=3, max_size=3), st.text(max_size=30))
@example(["a|b", "\r", "\u2028"], "<script>\r\n| x")
def test_table_cell_is_escaped(cells, note):
    """Any text of a judge or data set."""
    table = Table("t", "title", ["a", "b", "c"], [cells], [note])
    lines = table.markdown().splitlines()
    (row,) = [line for line in lines[4:] if line.startswith("|")]
    assert row.replace("\\|", "").count("|") == 4
    assert "<script" not in table.markdown()
    tex = [line for line in latex_table(table).splitlines() if not line.startswith("%")]
    (row,) = [line for line in tex if line.endswith(r" \\") and "a & b & c" not in line]
    assert row.replace("\\&", "").count("&") == 2
    _, *read = csv.reader(io.StringIO(table.csv(), newline=""))
    assert read == [[layout._csv(cell) for cell in cells]]
    assert all(unicodedata.category(letter) != "Cc" for cell in read[0] for letter in cell)


SCORES = st.floats(min_value=-100, max_value=100)


@given(st.dictionaries(st.sampled_from(GOFT_TASKS), st.dictionaries(st.integers(0, 4), SCORES, min_size=1), min_size=1))
def test_table_has_the_means_of_its_records(found):
    made = {task: [score_record(task, value, seed=seed) for seed, value in seeds.items()] for task, seeds in found.items()}
    line = rows_of(build_table("glue", "goft_icml24", [Row("qgoft", made)]))["qgoft"]
    means = {task: statistics.fmean(seeds.values()) for task, seeds in found.items()}
    for task, cell in zip(GOFT_TASKS, line[1:9], strict=True):
        if task not in means:
            assert cell == "-"
            continue
        mean, _, spread = cell.partition("±")
        assert float(mean) == pytest.approx(means[task], abs=0.0501)
        assert bool(spread) == (len(found[task]) > 1)
    if len(means) < 8:
        assert line[9] == "-"
    else:
        assert float(line[9].partition("±")[0]) == pytest.approx(statistics.fmean(means.values()), abs=0.0501)


# Mostly the relevant actions: acquire, wait, heartbeat.
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "wait", "wait", "live", "ask", "leave", "die"]), st.integers(0, 2), st.sampled_from([10, 100, 130])
    ),
    max_size=25,
)


@given(MOVES)
@example([("take", 0, 0), ("ask", 1, 0), ("wait", 0, 130), ("take", 1, 0), ("live", 0, 0), ("live", 1, 0), ("take", 0, 0)])
@example([("take", 0, 0), ("ask", 1, 0), ("wait", 0, 100), ("take", 1, 0)])
@example([("take", 0, 0), ("ask", 1, 0), ("wait", 0, 100), ("live", 0, 0), ("wait", 0, 100), ("take", 1, 0)])
def test_lease_is_exclusive(tmp_path_factory, moves):
    """Three machines in any order of actions; a dead one leaves its file, and the others see only files."""
    directory, now, hidden = tmp_path_factory.mktemp("run"), [0.0], {"heartbeat_interval": 1e6, "lease_duration": 120.0}
    views = [type("View", (Lease,), {"_seen": {}}) for _ in range(3)]
    held, last_life = {}, {}
    clock = SimpleNamespace(monotonic=lambda: now[0])
    with mock.patch("qgoft.lease.time", clock), mock.patch("qgoft.lease._is_alive", return_value=True):
        for move, number, seconds in moves:
            if move == "wait":
                now[0] += seconds
            elif move == "ask":
                views[number](directory, **hidden).owner()
            elif move == "take" and number not in held:
                lease, others = views[number](directory, **hidden), [other for other in held if still_holds(held[other])]
                try:
                    lease.__enter__()
                except LeaseHeld:
                    continue
                # The previous owner has sent no heartbeat for the lease duration.
                assert all(now[0] - last_life[other] > hidden["lease_duration"] for other in others), moves
                held[number], last_life[number] = lease, now[0]
            elif number in held and move == "live":
                if held[number].heartbeat():
                    last_life[number] = now[0]
            elif number in held and move == "leave":
                held.pop(number).__exit__(None, None, None)
            elif number in held and move == "die":
                lease = held.pop(number)
                lease._stop.set()
            assert sum(still_holds(lease) for lease in held.values()) <= 1, moves
        for lease in held.values():
            lease.__exit__(None, None, None)
        # Remaining files never block the run forever.
        for _ in range(2):
            views[0](directory, **hidden).owner()
            now[0] += 130
        with views[0](directory, **hidden):
            pass


def still_holds(lease):
    try:
        lease.assert_held()
    except LeaseLost:
        return False
    return True


@given(st.integers(min_value=2, max_value=130), st.integers(min_value=0, max_value=2**31), st.floats(min_value=0.01, max_value=40))
def test_rotation_is_orthogonal(d, seed, scale):
    theta = scale * torch.randn(d - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    blocks = rotation_blocks(theta)
    matrix = reference_matrix(blocks, d)
    assert (matrix.mT @ matrix - torch.eye(d, dtype=torch.float64)).abs().max() < 1e-12
