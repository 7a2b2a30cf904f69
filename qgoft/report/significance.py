"""Whether two rows of a table differ, or whether other seeds and other items could have turned them round.

Two sources of chance are added up. Items are drawn again with replacement, the same for every row, since all rows answered the same: what both
rows share cancels in the difference. Seeds are too few to be drawn again (the interval of three would be their range, which holds the truth
three times in four): their part is Student's t of the differences seed by seed. An interval that holds zero claims no order, and one seed alone
never does.
"""

import gzip
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qgoft.config.settings import DECODER_SUITES
from qgoft.records import base_model
from qgoft.report.items import Column, Item, Record
from qgoft.tasks.decoder.answer_parsing import same_formula
from qgoft.tasks.decoder.published_rules import is_equivalent
from qgoft.tasks.squad.scoring import question_scores

DRAWS = 1000
SHARE = 0.95
Array = np.ndarray[Any, Any]
ItemScore = Callable[[Any, Any], float]  # of a prediction and a label, in percent
Which = tuple[str, str]
# A line of predictions.jsonl.gz whose prediction and label are numbers, as they are written: all others are read as JSON.
_NUMBERS = re.compile(rb'\{("set": "[^"]*", "idx": (?:\d+|"[^"\\]*")), "prediction": (-?[\d.e+-]+), "label": (-?[\d.e+-]+)\}\n')


@dataclass(frozen=True)
class Answers:
    """What one run answered, in the order of its file: checksum of which items, predictions and labels."""

    items: str
    predictions: Array
    labels: Array


@dataclass(frozen=True)
class BootstrapSample:
    """A cell of a table: what must agree for two cells to be compared, and its scores [1 + draws, seeds], the first line as measured."""

    same: Any
    scores: Array


@dataclass(frozen=True)
class Difference:
    """Of one row from another: mean and interval, in the unit of the scores, and the seeds behind it. With one seed the interval is that of
    the items alone."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def is_above(self) -> bool:
        """Whether it says that the row is the higher of the two."""
        return self.seeds > 1 and self.low > 0


def read_lines(folder: Path) -> list[dict[str, Any]] | None:
    """The lines of predictions.jsonl.gz; None where it is missing, empty or torn."""
    text = _read(folder)
    try:
        # One array is read three times as fast as its lines.
        lines: list[dict[str, Any]] = json.loads(b"[" + text.strip().replace(b"\n", b",") + b"]")
        return lines if lines and all({"set", "idx", "prediction", "label"} <= set(line) for line in lines) else None
    except (ValueError, TypeError):
        return None


def read_answers(folder: Path, scored: ItemScore | None = None, which: Which | None = None) -> Answers | None:
    """The answers of a run's folder as numbers (texts get numbers of their own), or with `scored` every item's own score as its prediction;
    None where they are missing, torn, or not of this kind.

    Args:
        which: the items that are wanted, by what a field of their lines begins with; None: all.
    """
    if scored is not None:
        lines = read_lines(folder)
        try:
            return None if lines is None else Answers(_checksum(lines), _scores_of(lines, scored), np.full(len(lines), np.nan))
        except (TypeError, ValueError, AttributeError):
            return None
    text = _read(folder)
    found = [] if which else _NUMBERS.findall(text)
    if found and len(found) == text.count(b"\n"):
        items = hashlib.sha256(b"\n".join(item for item, _, _ in found)).hexdigest()
        return Answers(items, np.array([p for _, p, _ in found], "S").astype(float), np.array([r for _, _, r in found], "S").astype(float))
    lines = [line for line in read_lines(folder) or () if which is None or str(line[which[0]]).startswith(which[1])]
    if not lines:
        return None
    return Answers(_checksum(lines), *_as_numbers([line["prediction"] for line in lines], [line["label"] for line in lines]))


def _scores_of(lines: Sequence[Mapping[str, Any]], scored: ItemScore) -> Array:
    return np.array([scored(line["prediction"], line["label"]) for line in lines])


def _checksum(lines: Sequence[Mapping[str, Any]]) -> str:
    """Of which items were answered."""
    return hashlib.sha256(json.dumps([[line["set"], line["idx"]] for line in lines]).encode()).hexdigest()


def _read(folder: Path) -> bytes:
    try:
        return gzip.decompress((folder / "predictions.jsonl.gz").read_bytes())
    except (OSError, EOFError, zlib.error):
        return b""


def _as_numbers(predictions: list[Any], labels: list[Any]) -> tuple[Array, Array]:
    """Texts as numbers of their own; an answer that was not given is one that is never right."""
    if all(isinstance(value, int | float) for value in predictions):
        numeric = all(isinstance(value, int | float) for value in labels)
        return np.asarray(predictions, float), np.asarray(labels, float) if numeric else np.full(len(labels), np.nan)
    numbers: dict[str, int] = {}
    texts = [[None if v is None else str(v) for v in values] for values in (predictions, labels)]
    p, r = ([-1 if v is None else numbers.setdefault(v, len(numbers)) for v in values] for values in texts)
    return np.asarray(p, float), np.asarray(r, float)


def sign_test(won: int, lost: int) -> float:
    """Two-sided probability of so uneven a split, were both equally likely; ties are left out."""
    n, fewer = won + lost, min(won, lost)
    if n == 0:
        return 1.0
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


# --- scores of drawn items: weights [draws, items], answers and labels [items, runs] -> [draws, runs] -----------------------------------
# In float32, where the matrix product of a thousand draws is twice as fast; a score moves by less than 1e-3 of a percent.


def _times(weights: Array, values: Array) -> Array:
    """Weighted means over the items; the weights of a draw sum to their number."""
    return np.asarray(weights @ values.astype(np.float32) / weights.shape[1])


def _share_right(weights: Array, predictions: Array, labels: Array) -> Array:
    return 100 * _times(weights, predictions == labels)


def _matthews(weights: Array, predictions: Array, labels: Array) -> Array:
    p, r = predictions == 1, labels == 1
    tp, fp, fn, tn = (_times(weights, which) for which in (p & r, p & ~r, ~p & r, ~p & ~r))
    below = np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray(100 * np.divide(tp * tn - fp * fn, below, out=np.zeros_like(below), where=below > 0))


def _f1(weights: Array, predictions: Array, labels: Array) -> Array:
    p, r = predictions == 1, labels == 1
    tp, wrong = _times(weights, p & r), _times(weights, p ^ r)
    return np.asarray(100 * 2 * tp / np.maximum(2 * tp + wrong, 1e-12))


def _pearson(weights: Array, x: Array, y: Array) -> Array:
    # Of standardised values, so that float32 is enough.
    x, y = ((v - v.mean(0)) / np.maximum(v.std(0), 1e-12) for v in (x, y))
    mean_x, mean_y = _times(weights, x), _times(weights, y)
    covariance = _times(weights, x * y) - mean_x * mean_y
    spread = (_times(weights, x * x) - mean_x**2) * (_times(weights, y * y) - mean_y**2)
    return np.asarray(100 * covariance / np.sqrt(np.maximum(spread, 1e-12)))


def _pearson_spearman(weights: Array, x: Array, y: Array) -> Array:
    # Ranks are those among all items: they move little in a draw, and the order of rows not at all.
    return np.asarray((_pearson(weights, x, y) + _pearson(weights, _ranks(x), _ranks(y))) / 2)


def _ranks(values: Array) -> Array:
    """Of each column, from 1; equal values share the mean of theirs."""
    return np.stack([_ranks_of(column) for column in values.T], 1)


def _ranks_of(column: Array) -> Array:
    _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse])


def _mean(weights: Array, predictions: Array, labels: Array) -> Array:
    return _times(weights, predictions)


SCORES: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": _share_right,
    "accuracy_matched": _share_right,
    "accuracy_mismatched": _share_right,
    "matthews": _matthews,
    "f1": _f1,
    "pearson": _pearson,
    "pearson_spearman": _pearson_spearman,
    "score": _mean,
    "mmlu5_avg": _share_right,
    "mmlu0_avg": _share_right,
}
# The metrics of some of a run's items alone -> which: what a field of their lines begins with.
ITEMS_OF: dict[str, Which] = {
    "mmlu5_avg": ("idx", "5-"),
    "mmlu0_avg": ("idx", "0-"),
    "accuracy_matched": ("set", "matched"),
    "accuracy_mismatched": ("set", "mismatched"),
}


def _question(number: int) -> ItemScore:
    return lambda prediction, answers: 100 * question_scores(prediction, answers)[number]


def _formula(prediction: Any, label: Any) -> float:
    return 100.0 * (prediction is not None and same_formula(prediction, label))


def _published_formula(prediction: Any, label: Any) -> float:
    return 100.0 * (prediction is not None and is_equivalent(prediction, label))


# Where an item's score is more than whether two texts are the same: (suite, task, metric) -> prediction and label -> percent.
ITEM_SCORES: dict[tuple[str, str, str], ItemScore] = {
    ("squad", "v1", "exact_match"): _question(0),
    ("squad", "v1", "f1"): _question(1),
    ("math", "math", "accuracy"): _formula,
}


def item_score(record: Record, metric: str) -> ItemScore | None:
    """Return the score of an item of a record; None for a comparison of two texts and for a metric that is not a mean over items."""
    place = (record["suite"], record["task"], metric)
    if place == ("math", "math", "accuracy") and record["settings"]["task"]["options"].get("scoring") == "published":
        return _published_formula
    return ITEM_SCORES.get(place)


class Bootstrap:
    """Scores of table rows under redrawn items, and how far two rows differ.

    Args:
        folders: key of a record -> its folder, where the answers are.
    """

    def __init__(self, folders: Mapping[str, Path]):
        self.folders = folders
        self._weights: dict[int, Array] = {}
        self._answers: dict[tuple[str, ItemScore | None, Which | None], Answers | None] = {}
        self._scores: dict[tuple[str, tuple[str, ...]], tuple[str, Array] | None] = {}

    def column(self, column: Column, records: Sequence[Record]) -> BootstrapSample | None:
        """One cell. What must agree for two to be compared: seeds, items, the rows that trained and were scored (so that a subset meets its like
        alone), and the weights that the training began with."""
        if column.task is None or not records:
            return None
        records = sorted(records, key=lambda record: int(record["seed"]))
        seeds = tuple(record["seed"] for record in records)
        metric = column.metric or records[0]["primary"]
        place = (metric, tuple(record["key"] for record in records))
        if place not in self._scores:
            self._scores[place] = self._draw(records, metric)
        sample = self._scores[place]
        if sample is None or len(set(seeds)) < len(seeds):
            return None
        items, by_seed = sample
        rows = [record["provenance"]["data"] for record in records]
        made_from = [(made["fingerprint"], made["rows"], base_model(record)) for record, made in zip(records, rows, strict=True)]
        return BootstrapSample((seeds, items, made_from), by_seed)

    def column_difference(self, column: Column, ours: Sequence[Record], theirs: Sequence[Record]) -> Difference | None:
        """Of two cells, on the seeds that both have; None where they have none, or not the same items."""
        return difference(*(self.column(column, records) for records in _of_common_seeds(ours, theirs)))

    def average_difference(
        self, item: Item, ours: Mapping[str, Sequence[Record]], theirs: Mapping[str, Sequence[Record]]
    ) -> Difference | None:
        """Of two rows' averages by the item's own rule, on the seeds that both have of each task. Tasks are trained apart, so their parts add up;
        those of decoders share one training, so their seeds count once."""
        if not item.has_average:
            return None
        weights, gaps, seeds = item.weights, [], set()
        for column in item.columns:
            one, other = (
                self.column(column, some) for some in _of_common_seeds(*(row.get(column.task or "", []) for row in (ours, theirs)))
            )
            gap = _gap(one, other)
            if one is None or gap is None:
                return None
            gaps.append(weights[column.printed] * gap)
            seeds.add(one.same[0])
        if item.suite in DECODER_SUITES:
            return interval([np.sum(gaps, 0)]) if len(seeds) == 1 else None
        return interval(gaps)

    def _draw(self, records: Sequence[Record], metric: str) -> tuple[str, Array] | None:
        """Return the checksums of the answered items, one a seed, and the drawn scores [1 + draws, seeds].

        Seeds may have other items (`seeded_halves`), but as many; two rows are compared only if they agree seed by seed.
        """
        scored = item_score(records[0], metric)
        score = SCORES.get(metric) if scored is None else _mean
        if score is None or any(record["metrics"].get(metric, {}).get("value") is None for record in records):
            return None
        found = [self._read(record["key"], scored, ITEMS_OF.get(metric)) for record in records]
        answers = [one for one in found if one is not None and len(one.labels) == records[0]["metrics"][metric]["n"]]
        if len(answers) < len(records) or len({len(one.labels) for one in answers}) > 1:
            return None
        predictions, labels = (np.stack([getattr(one, name) for one in answers], 1) for name in ("predictions", "labels"))
        return " ".join(one.items for one in answers), score(self._draw_weights(len(labels)), predictions, labels)

    def _read(self, key: str, scored: ItemScore | None, which: Which | None) -> Answers | None:
        place = (key, scored, which)
        if place not in self._answers:
            self._answers[place] = read_answers(self.folders[key], scored, which) if key in self.folders else None
        return self._answers[place]

    def _draw_weights(self, items: int) -> Array:
        """How often each item is drawn; one choice for all rows. The first draw has every item once: it is what was measured."""
        if items not in self._weights:
            draws = np.random.default_rng(0).multinomial(items, np.full(items, 1 / items), DRAWS)
            self._weights[items] = np.concatenate((np.ones((1, items)), draws)).astype(np.float32)
        return self._weights[items]


def _of_common_seeds(ours: Sequence[Record], theirs: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    seeds = {record["seed"] for record in ours} & {record["seed"] for record in theirs}
    first, second = ([record for record in records if record["seed"] in seeds] for records in (ours, theirs))
    return first, second


def difference(ours: BootstrapSample | None, theirs: BootstrapSample | None) -> Difference | None:
    """Of two cells; None where they are not of the same seeds, items and beginnings."""
    gap = _gap(ours, theirs)
    return None if gap is None else interval([gap])


def _gap(ours: BootstrapSample | None, theirs: BootstrapSample | None) -> Array | None:
    return None if ours is None or theirs is None or ours.same != theirs.same else ours.scores - theirs.scores


def interval(parts: Sequence[Array]) -> Difference:
    """Of the sum of independent parts [1 + draws, seeds]: the reach of its seeds (Student's t, with Satterthwaite's degrees of freedom for several
    parts) and that of its items, added in squares. One t for both would trust two seeds that happen to agree."""
    mean, of_seeds, of_items, below = 0.0, 0.0, 0.0, 0.0
    for part in parts:
        seeds = part.shape[1]
        variance = float(part[0].var(ddof=1)) / seeds if seeds > 1 else 0.0
        mean += float(part[0].mean())
        of_seeds += variance
        below += variance**2 / max(seeds - 1, 1)
        of_items += float(part[1:].mean(1).var(ddof=1))
    reach = math.sqrt(_student(of_seeds**2 / below if below else 1) ** 2 * of_seeds + _student(math.inf) ** 2 * of_items)
    return Difference(mean, mean - reach, mean + reach, min(part.shape[1] for part in parts))


def _student(freedom: float) -> float:
    """How many standard errors an interval of SHARE reaches to either side."""
    from scipy.special import stdtrit  # takes a while to import, and is needed only where rows are compared

    return float(stdtrit(min(freedom, 1e6), (1 + SHARE) / 2))
