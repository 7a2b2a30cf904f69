"""Resampled scores: they equal the metrics, and an order is claimed only if it is significant."""

import copy
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats

from qgoft.records import RunDirectory
from qgoft.report.answers import read_answers
from qgoft.report.items import ITEMS, Column
from qgoft.report.latex import latex_table
from qgoft.report.paired_table import build_paired
from qgoft.report.row import Row
from qgoft.report.score_table import build_table
from qgoft.report.significance import NUM_DRAWS, SCORES, Bootstrap, difference, interval, sign_test
from qgoft.tasks.metrics import compute_score
from tests.committed import committed, select
from tests.records.test_records import RECORD


def write(directory, predictions, labels, sets=None):
    directory.mkdir(parents=True, exist_ok=True)
    lines = [
        {"set": "" if sets is None else sets[i], "idx": i, "prediction": p, "label": r}
        for i, (p, r) in enumerate(zip(predictions, labels, strict=True))
    ]
    (directory / "predictions.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))


class Shop:
    """Write runs with answers of which the given share is correct."""

    def __init__(self, root):
        self.root, self.files = root, {}
        self.labels = [int(v) for v in np.random.default_rng(5).integers(0, 2, 400)]

    def run(self, method, seed, right, task="rte", *, answers=True, labels=None, predictions=None, draw=0):
        labels = self.labels if labels is None else labels
        if predictions is None:
            wrong = np.random.default_rng(seed + draw).permutation(len(labels))[: round((1 - right) * len(labels))]
            predictions = [1 - label if i in set(wrong.tolist()) else label for i, label in enumerate(labels)]
        key = f"{len(self.files):064x}"
        directory = self.root / key
        if answers:
            write(directory, predictions, labels)
        self.files[key] = RunDirectory(directory, key)
        record = copy.deepcopy(RECORD)
        value = 100 * float(np.mean([p == r for p, r in zip(predictions, labels, strict=True)]))
        record.update(key=key, method=method, variant=method, seed=seed, task=task, protocol="pocket", primary="accuracy")
        record["metrics"] = {
            "accuracy": {
                "value": value,
                "higher_is_better": True,
                "n": len(labels),
                "standard_error": 1.0,
                "majority_baseline": None,
                "computed_by": "qgoft.tasks.metrics.compute_score",
            }
        }
        record["settings"] = {"model": {"init": "pretrained"}, "eval_scheme": "test", "method": {"lr_source": "own"}}
        return record


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path)


RTE = Column("rte", "RTE", "rte")


@pytest.mark.parametrize("metric", ["accuracy", "matthews", "f1", "pearson", "pearson_spearman"])
def test_scores_of_all_items_equal_metrics(metric):
    rng = np.random.default_rng(0)
    if metric.startswith("pearson"):
        labels = rng.normal(size=300).round(1)
        predictions = labels + rng.normal(size=300).round(1)
    else:
        labels, predictions = rng.integers(0, 2, 300), rng.integers(0, 2, 300)
    ours = SCORES[metric](np.ones((1, 300), np.float32), predictions[:, None], labels[:, None])
    assert ours[0, 0] == pytest.approx(compute_score(metric, predictions, labels), abs=1e-3)


def test_scores_of_resampled_items_equal_metrics():
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 2, 200), rng.integers(0, 2, 200)
    rows = rng.integers(0, 200, 200)
    weights = np.bincount(rows, minlength=200)[None].astype(np.float32)
    for metric in ("accuracy", "matthews", "f1"):
        assert SCORES[metric](weights, predictions, labels)[0] == pytest.approx(
            compute_score(metric, predictions[rows], labels[rows]), abs=1e-3
        )


def test_accuracy_interval_matches_theory(shop):
    drawn = Bootstrap(shop.files).cell(RTE, [shop.run("a", 0, 0.8)])
    assert drawn.scores.shape == (1 + NUM_DRAWS, 1)
    assert drawn.scores[0, 0] == pytest.approx(80)
    assert drawn.scores.mean() == pytest.approx(80, abs=0.3)
    assert drawn.scores.std() == pytest.approx(100 * np.sqrt(0.8 * 0.2 / 400), rel=0.1)


def test_draws_of_different_test_sets_are_independent(shop):
    """Two sets of one size: with equal draws the variance of their average would contain a covariance."""
    bootstrap, scores = Bootstrap(shop.files), []
    for task, labels in (("rte", [0, 1] * 200), ("mrpc", [1, 0] * 200)):
        record = shop.run("a", 0, 1.0, task, answers=False)
        write(shop.files[record["key"]].path, [label if i % 5 else 1 - label for i, label in enumerate(labels)], labels)
        record["metrics"] = {record["primary"]: {"value": 80.0, "n": 400, "higher_is_better": True}}
        scores.append(bootstrap.cell(Column(task, task, task), [record]).scores[1:, 0])
    assert abs(np.corrcoef(*scores)[0, 1]) < 0.2


@pytest.mark.parametrize(("part", "share"), [("matched", 0.9), ("mismatched", 0.6)])
def test_mnli_resamples_the_primary_split(shop, part, share):
    """The papers' protocols report one of the two test sets."""
    record = shop.run("a", 0, 1.0, "mnli", answers=False)
    labels = [0, 1] * 100
    predictions = [label if i % 10 < (9 if i < 100 else 6) else 1 - label for i, label in enumerate(labels)]
    write(shop.files[record["key"]].path, predictions, labels, ["matched"] * 100 + ["mismatched"] * 100)
    record["primary"] = f"accuracy_{part}"
    record["metrics"] = {record["primary"]: {"value": 100 * share, "n": 100, "higher_is_better": True}}
    drawn = Bootstrap(shop.files).cell(Column("mnli", "MNLI", "mnli"), [record])
    assert drawn.scores[0, 0] == pytest.approx(100 * share)


def test_interval_clear_and_no_difference(shop):
    bootstrap = Bootstrap(shop.files)
    good, bad = ([shop.run(m, s, right) for s in range(3)] for m, right in (("a", 0.9), ("b", 0.7)))
    gap = difference(bootstrap.cell(RTE, good), bootstrap.cell(RTE, bad))
    assert gap.low > 10
    assert gap.is_significantly_higher
    same = [shop.run("c", s, 0.9) for s in range(3)]  # the same seeds err on the same items
    none = difference(bootstrap.cell(RTE, good), bootstrap.cell(RTE, same))
    assert (none.low, none.high) == (0, 0)
    assert not none.is_significantly_higher


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("of_items", [0.0, 0.3, 1.0])
def test_interval_coverage(seeds, of_items):
    """Simulate seeds with deviation 1, items that affect all seeds alike, and noise of each pair; the true difference is zero."""
    rng, held, trials = np.random.default_rng(seeds), 0, 1500
    for _ in range(trials):
        part = np.zeros((201, seeds)) + rng.normal(size=seeds) + of_items * rng.normal() + 0.1 * rng.normal(size=seeds)
        part[1:] += of_items * rng.normal(size=(200, 1)) + 0.1 * rng.normal(size=(200, seeds))
        gap = interval([part])
        held += gap.low <= 0 <= gap.high
    assert 0.93 <= held / trials <= 0.995


def test_interval_adds_independent_tasks():
    """Eight tasks of three seeds have sixteen degrees of freedom, as in a t test of that size."""
    rng = np.random.default_rng(0)
    parts = [np.tile(rng.normal(size=3), (201, 1)) / 8 for _ in range(8)]
    gap = interval(parts)
    own = [float(part[0].var(ddof=1)) / 3 for part in parts]
    freedom = sum(own) ** 2 / sum(value**2 / 2 for value in own)
    assert 8 < freedom < 16
    assert gap.mean == pytest.approx(sum(part[0].mean() for part in parts))
    assert (gap.high - gap.low) / 2 == pytest.approx(scipy.stats.t.ppf(0.975, freedom) * sum(own) ** 0.5)


def test_one_seed_claims_no_order(shop):
    bootstrap = Bootstrap(shop.files)
    gap = difference(bootstrap.cell(RTE, [shop.run("a", 0, 0.9)]), bootstrap.cell(RTE, [shop.run("b", 0, 0.6)]))
    assert gap.low > 20
    assert not gap.is_significantly_higher


def test_tasks_of_a_training_share_seeds(shop):
    """Four tasks with equal differences of two seeds: eight differences if trained separately, two if they share a training."""
    item = replace(ITEMS["psoft-table5"], columns=ITEMS["psoft-table5"].columns[:4])
    rows = [
        {c.task: [shop.run(name, seed, share, c.task) for seed, share in enumerate(shares)] for c in item.columns}
        for name, shares in (("a", (0.9, 0.7)), ("b", (0.8, 0.65)))
    ]
    bootstrap = Bootstrap(shop.files)
    shared, apart = (bootstrap.average_difference(i, *rows) for i in (item, replace(item, suite="glue")))
    assert shared.mean == pytest.approx(apart.mean) == pytest.approx(7.5)
    assert (shared.high - shared.low) > 2 * (apart.high - apart.low)
    paired = build_paired("psoft-table5", [Row(name, row) for name, row in zip("ab", rows, strict=True)], item, bootstrap)
    assert paired.rows[0][-2:] == ["0/8", "-"]


def test_incomparable_rows_have_no_interval(shop):
    bootstrap = Bootstrap(shop.files)
    zero, one = [shop.run("a", 0, 0.9)], [shop.run("b", 1, 0.7)]
    assert difference(bootstrap.cell(RTE, zero), bootstrap.cell(RTE, one)) is None, "other seeds"
    fewer = [shop.run("c", 0, 0.7, labels=shop.labels[:300])]
    assert difference(bootstrap.cell(RTE, zero), bootstrap.cell(RTE, fewer)) is None, "other items"
    for kind, name in (("data", "fingerprint"), ("model", "sha256")):
        other = shop.run("b", 0, 0.7)
        assert difference(bootstrap.cell(RTE, zero), bootstrap.cell(RTE, [other])) is not None
        other["provenance"][kind][name] = "f" * 64
        assert difference(bootstrap.cell(RTE, zero), bootstrap.cell(RTE, [other])) is None, f"another {name}"
    assert bootstrap.cell(RTE, [shop.run("d", 0, 0.7, answers=False)]) is None
    assert bootstrap.cell(RTE, []) is None


def test_corrupt_answers_are_ignored(tmp_path):
    write(tmp_path, [1, 0], [1, 1])
    whole = (tmp_path / "predictions.jsonl.gz").read_bytes()
    assert read_answers(RunDirectory(tmp_path, "")).predictions.tolist() == [1, 0]
    for text in (whole[:-9], b"", gzip.compress(b'{"set": "", "idx": 0'), gzip.compress(b'{"idx": 0}\n')):
        (tmp_path / "predictions.jsonl.gz").write_bytes(text)
        assert read_answers(RunDirectory(tmp_path, "")) is None
    assert read_answers(RunDirectory(tmp_path / "nowhere", "")) is None


def test_missing_answers_count_as_wrong(shop):
    record = shop.run("a", 0, 0, labels=["yes", "no", "yes", "no"], predictions=["yes", None, "no", "no"])
    drawn = Bootstrap(shop.files).cell(RTE, [record])
    assert drawn.scores.mean() == pytest.approx(50, abs=3)


def test_sign_test():
    assert sign_test(0, 0) == 1
    assert sign_test(5, 5) == 1
    assert sign_test(8, 0) == pytest.approx(2 / 256)
    assert sign_test(1, 7) == pytest.approx(2 * 9 / 256)


def rows_of(shop, shares):
    return [Row(name, {t: [shop.run(name, s, share, t) for s in range(3)] for t in ("qnli", "rte")}) for name, share in shares.items()]


def test_best_is_bold_if_significant(shop):
    rows = rows_of(shop, {"a": 0.95, "b": 0.80, "c": 0.6})
    rows.append(Row("d", {task: [shop.run("d", s, 0.797, task, draw=100) for s in range(3)] for task in ("qnli", "rte")}))
    table = build_table("glue", "pocket", rows, item=ITEMS["flexibility"], bootstrap=Bootstrap(shop.files))
    assert {place for place, mark in table.highlights.items() if mark == "best"} == {(0, 2), (0, 3), (0, 4)}
    assert "second" not in table.highlights.values(), "b and d are not told apart"
    assert "**95.0 ±0.0**" in table.markdown()
    assert r"\textbf{95.0 $\pm$0.0}" in latex_table(table)
    rows[0].is_altered = True
    again = build_table("glue", "pocket", rows, item=ITEMS["flexibility"], bootstrap=Bootstrap(shop.files))
    assert not again.highlights, "an altered row is never the best"


def test_best_is_compared_with_every_row(shop):
    """The third row varies so much that it is not distinguished from the first, while its neighbour is."""
    rows = rows_of(shop, {"a": 0.9, "b": 0.8})
    for task, records in rows[0].records.items():
        records.extend(shop.run("a", s, 0.9, task) for s in (3, 4))
        rows[1].records[task].extend(shop.run("b", s, 0.8, task) for s in (3, 4))
    shares = (0.99, 0.5, 0.98, 0.5, 0.95)
    rows.append(Row("c", {task: [shop.run("c", s, share, task) for s, share in enumerate(shares)] for task in ("qnli", "rte")}))
    bootstrap = Bootstrap(shop.files)
    with_two, with_three = (
        build_table("glue", "pocket", some, item=ITEMS["flexibility"], bootstrap=bootstrap) for some in (rows[:2], rows)
    )
    assert (with_two.highlights[0, 4], with_three.highlights) == ("best", {})


def test_best_uses_common_seeds(shop):
    """On the common seeds, the row with the lower mean is the higher one."""
    rows = [
        Row(name, {task: [shop.run(name, s, share, task) for s, share in enumerate(shares)] for task in ("qnli", "rte")})
        for name, shares in (("a", (0.6, 0.6, 0.9, 0.9, 0.9)), ("b", (0.7, 0.7)))
    ]
    table = build_table("glue", "pocket", rows, item=ITEMS["flexibility"], bootstrap=Bootstrap(shop.files))
    assert table.highlights == {}


def test_second_is_underlined(shop):
    table = build_table(
        "glue", "pocket", rows_of(shop, {"a": 0.95, "b": 0.8, "c": 0.6}), item=ITEMS["flexibility"], bootstrap=Bootstrap(shop.files)
    )
    assert table.highlights[1, 4] == "second"
    assert "<u>80.0</u>" in table.markdown()
    assert r"\underline{80.0}" in latex_table(table)


def test_paired_table(shop):
    rows = rows_of(shop, {"a": 0.6, "b": 0.9})
    table = build_paired("flexibility", rows, ITEMS["flexibility"], Bootstrap(shop.files))
    assert table.title.endswith("each row minus b")
    assert table.columns[0] == "minus b"
    ((name, *cells),) = table.rows
    assert name == "a"
    assert cells[0].startswith("-30.0 (-3")
    assert cells[-2:] == ["0/6", "0.031"]


def test_fewer_seeds_do_not_shrink_other_rows(shop):
    rows = rows_of(shop, {"a": 0.6, "b": 0.8, "c": 0.95})
    for task, found in rows[2].records.items():
        rows[2].records[task] = found[:1]
    table = build_paired("flexibility", rows, ITEMS["flexibility"], Bootstrap(shop.files))
    assert table.title.endswith("minus b"), "c is higher, with one seed"
    assert [row[0] for row in table.rows] == ["a", "c"]
    assert table.rows[0][-2] == "0/6"


def test_sign_test_counts_a_run_once(shop):
    rows = rows_of(shop, {"a": 0.6, "b": 0.9})
    for row in rows:
        row.records = {"v1": row.records["rte"]}
        for record in row.all():
            record["metrics"] |= {"exact_match": record["metrics"]["accuracy"], "f1": record["metrics"]["accuracy"]}
    table = build_paired("table4", rows, ITEMS["table4"], Bootstrap(shop.files))
    assert table.rows[0][-2:] == ["3/0", "0.25"]


def on_a_subset(row, rows=("train", 3060)):
    for record in row.all():
        record["provenance"]["data"] |= {"subset": True, "rows": dict([rows])}
    return row


def test_subset_rows_are_compared_not_marked(shop):
    rows = [on_a_subset(row) for row in rows_of(shop, {"goft": 0.6, "qgoft": 0.9})]
    del rows[0].records["qnli"]
    item = ITEMS["flexibility"]
    bootstrap = Bootstrap(shop.files)
    table = build_paired("flexibility", rows, item, bootstrap)
    assert table.title.endswith("minus qGOFT"), "the best of the column that both have"
    (row,) = table.rows
    assert row[0] == "goft"
    assert row[table.columns.index("RTE")].startswith("-30.0 (")
    assert row[table.columns.index("QNLI")] == "-"
    assert "subsets of the official data" in table.notes
    assert not build_table("glue", "pocket", rows, item=item, bootstrap=bootstrap).highlights


def test_different_subsets_are_not_compared(shop):
    goft, qgoft = rows_of(shop, {"goft": 0.6, "qgoft": 0.9})
    table = build_paired(
        "flexibility", [on_a_subset(goft), on_a_subset(qgoft, ("train", 3668))], ITEMS["flexibility"], Bootstrap(shop.files)
    )
    (row,) = table.rows
    assert {row[table.columns.index(title)] for title in ("QNLI", "RTE", "Avg")} == {"-"}


def test_cells_name_runs_and_failures(shop):
    (row,) = rows_of(shop, {"a": 0.9})
    row.planned = {"qnli": 3, "rte": 4}
    row.failed = {"rte": [{**shop.run("a", 3, 0.9), "status": "oom"}]}
    lost = Row("b", {}, planned={"rte": 1}, failed={"rte": [{**shop.run("b", 0, 0.9), "status": "diverged"}]})
    table = build_table("glue", "pocket", [row, lost], item=ITEMS["flexibility"])
    assert len(table.sources[0, 2]) == 3
    assert len(table.sources[0, 3]) == 4
    assert table.rows[0][3] == "90.0 ±0.0†", "a mean of those that did not fail says so"
    assert any(note.startswith("†") and "3 of 4" in note and "oom" in note for note in table.notes), table.notes
    assert table.rows[1][3] == "diverged"
    row.planned = {"qnli": 5, "rte": 5}
    assert build_table("glue", "pocket", [row], item=ITEMS["flexibility"]).rows[0][0] == "a (3 of 5 seeds)"


@pytest.mark.parametrize(
    ("suite", "task", "metric", "predictions", "labels", "expected"),
    [
        ("squad", "v1", "f1", ["The cat sat", "dog", ""], [["cat sat", "x"], ["cat"], ["cat"]], 100 / 3),
        ("squad", "v1", "exact_match", ["the cat!", "a dog", "cat sat"], [["cat"], ["x", "dog"], ["cat"]], 200 / 3),
        ("math", "math", "accuracy", ["0.5", "7", None, "x"], ["\\frac{1}{2}", "7.0", "1", "y"], 50.0),
        ("math", "math published", "accuracy", ["0.5", "7", None, "x"], ["\\frac{1}{2}", "7.0", "1", "y"], 25.0),
    ],
)
def test_items_use_the_scoring_of_their_task(shop, suite, task, metric, predictions, labels, expected):
    task, _, scoring = task.partition(" ")
    made = [shop.run("lora", seed, 0, task, predictions=predictions, labels=labels) for seed in (0, 1)]
    for record in made:
        record["settings"] = {"task": {"options": {"scoring": scoring}}}
        record.update(suite=suite, primary=metric)
        record["metrics"] = {metric: {"value": expected, "higher_is_better": True, "n": len(labels)}}
    bootstrap = Bootstrap(shop.files)
    drawn = bootstrap.cell(Column(task, task, task, metric), made)
    assert drawn.comparison_key[0] == (0, 1)
    assert drawn.scores[0] == pytest.approx([expected] * 2, abs=1e-3)
    assert 0 < drawn.scores[1:].std() < 50
    write(shop.files[made[0]["key"]].path, [[1]] * len(labels), labels)
    assert Bootstrap(shop.files).cell(Column(task, task, task, metric), made) is None


@pytest.mark.parametrize(
    ("task", "metric"),
    [
        *(("v1", name) for name in ("f1", "exact_match")),
        *(("mmlu", name) for name in ("mmlu5_avg", "mmlu0_avg")),
    ],
)
def test_committed_answers_reproduce_scores(task, metric):
    record, *_ = select(task, method="lora", variant="r8", seed=0)
    drawn = Bootstrap(committed().files).cell(Column(record["task"], "", record["task"], metric), [record])
    assert drawn.scores[0, 0] == pytest.approx(record["metrics"][metric]["value"], abs=1e-3)
