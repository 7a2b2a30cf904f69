"""Figure 3 as a table, from predictions next to records."""

import gzip
import json

from qgoft.records import RunDirectory
from qgoft.report.win_rates import build_categories, build_win_rates, read_ratings


def record(root, key, method, ratings, seed=0):
    directory = root / "runs" / key
    directory.mkdir(parents=True)
    lines = [{"set": "", "idx": i, "prediction": rating, "label": "a" if i < 2 else "b"} for i, rating in enumerate(ratings)]
    (directory / "predictions.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    return {"key": key, "method": method, "variant": method, "seed": seed, "settings": {"model": {"init": "pretrained"}}}


def files(root):
    return {path.name: RunDirectory(path, path.name) for path in (root / "runs").iterdir()} if (root / "runs").is_dir() else {}


def test_win_rates_of_the_first_row(tmp_path):
    records = [record(tmp_path, "1", "goft", [5.0, 6.0, 7.0, 8.0]), record(tmp_path, "2", "lora", [4.0, 6.0, 8.0, 1.0])]
    rated = read_ratings(files(tmp_path), [*records, {**records[0], "key": "not there"}])
    table = build_win_rates(rated, "pocket")
    assert table.rows[0][:5] == ["lora", "2", "1", "1", "+1.75"]
    assert any("30/37/13" in note for note in table.notes)
    categories = build_categories(rated, "pocket")
    assert categories.columns == ["", "a", "b", "all", "95% interval"]
    assert categories.rows[0][:4] == ["goft", "5.50", "7.50", "6.50"]


def test_win_rates_single_method(tmp_path):
    alone = record(tmp_path, "1", "goft", [5.0])
    rated = read_ratings(files(tmp_path), [alone])
    assert build_win_rates(rated, "pocket") is None


def test_win_rates_average_over_seeds(tmp_path):
    ours = [record(tmp_path, f"a{seed}", "goft", [5.0, 6.0 + seed, 7.0, 8.0], seed) for seed in range(4)]
    theirs = [record(tmp_path, f"b{seed}", "lora", [4.0, 7.0, 7.0, 9.0], seed) for seed in range(3)]
    rated = read_ratings(files(tmp_path), [*ours, *theirs])
    (row,) = build_win_rates(rated, "pocket").rows
    assert row[1:5] == ["1", "2", "1", "+0.00"], "by the three seeds that both have, the second question is a tie"
    one = build_categories(read_ratings(files(tmp_path), [theirs[0]]), "pocket").rows[0]
    assert build_categories(read_ratings(files(tmp_path), theirs), "pocket").rows[0] == one, "three seeds alike: the interval of one"
