"""GLUE: rows from files, splits, and damaged input."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from qgoft.config.compose import compose_settings
from qgoft.config.keys import settings_in_key
from qgoft.errors import QgoftError
from qgoft.models import load_tokenizer
from qgoft.pocket.weights import weights_directory
from qgoft.run_id import identify
from qgoft.tasks import sources
from qgoft.tasks.glue import data as glue
from qgoft.tasks.glue.data import load_splits
from qgoft.tasks.sources import resolve_data, split_names

SENTENCES = ["the dog ran .", "a cat slept .", "two birds sang .", "the boy laughed ."]


def write_rte(directory, *, labels=(0, 1, 0, 1), names=("entailment", "not_entailment"), texts=SENTENCES, splits=("train", "validation")):
    directory.mkdir(parents=True)
    features = Features(
        {"sentence1": Value("string"), "sentence2": Value("string"), "label": ClassLabel(names=list(names)), "idx": Value("int32")}
    )
    for split in splits:
        rows = {
            "sentence1": [f"{split} {t}" for t in texts],
            "sentence2": list(texts),
            "label": list(labels),
            "idx": list(range(len(texts))),
        }
        Dataset.from_dict(rows, features=features).to_parquet(directory / f"{split}.parquet")


def settings(root, *words):
    return compose_settings(["protocol=small", "method=qgoft", f"data.root={root}", *words])


def load(s):
    tokenizer = load_tokenizer(weights_directory("pocket-deberta"))
    return load_splits(s, resolve_data(s.task, s.data, split_names(s.task, s.eval_scheme)), tokenizer, "pocket")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "cache"))


def test_glue_directory_layouts(tmp_path):
    write_rte(tmp_path / "a" / "glue" / "rte")
    write_rte(tmp_path / "b" / "rte")
    one, two = settings(tmp_path / "a", "task=glue/rte"), settings(tmp_path / "b", "task=glue/rte")
    files = [resolve_data(s.task, s.data, ["train", "validation"]) for s in (one, two)]
    assert files[0].fingerprint == files[1].fingerprint
    assert files[0].source == "directory"
    assert len(load(one).train) == 4


def test_validation_halves_are_fixed(tmp_path):
    write_rte(tmp_path / "rte", texts=[f"text {i}" for i in range(41)], labels=[i % 2 for i in range(41)])
    parts = load(settings(tmp_path, "task=glue/rte"))
    chosen, reported = parts.validation["idx"], parts.test[""]["idx"]
    assert (len(chosen), len(reported)) == (20, 21)
    assert sorted([*chosen, *reported]) == list(range(41))
    assert list(chosen) == np.random.default_rng(0).permutation(41)[:20].tolist()
    again = load(settings(tmp_path, "task=glue/rte", "seed=3"))
    assert list(again.validation["idx"]) == list(chosen)


def test_eval_scheme_validation(tmp_path):
    write_rte(tmp_path / "rte")
    parts = load(compose_settings(["protocol=goft_icml24", "task=glue/rte", "method=qgoft", f"data.root={tmp_path}"]))
    assert parts.validation is None
    assert len(parts.test[""]) == 4
    assert parts.is_subset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": (0, 1, -1, 1)}, r"label -1 in row 2 \(1 such rows\); allowed are 0 to 1"),
        ({"names": ("yes", "no")}, r"labels are named \['yes', 'no'\]; expected \['entailment'"),
        ({"texts": ["a", None, "b", "c"]}, "column sentence1 of train.parquet has 1 rows without a value"),
        ({"texts": [], "labels": []}, "has no rows; complete the data"),
        ({"splits": ("train",)}, "needs split validation, but .*rte has train.parquet"),
    ],
)
def test_glue_damaged_rows(tmp_path, change, message):
    write_rte(tmp_path / "rte", **change)
    if change.get("texts") and None in change["texts"]:
        for path in (tmp_path / "rte").iterdir():
            rows = Dataset.from_parquet(str(path))
            rows.map(lambda r: {"sentence1": None if r["idx"] == 1 else "x"}).to_parquet(path)
    with pytest.raises(QgoftError, match=message):
        load(settings(tmp_path, "task=glue/rte"))


def test_stsb_label_nan(tmp_path):
    (tmp_path / "stsb").mkdir()
    for split in ("train", "validation"):
        rows = {"sentence1": ["a", "b"], "sentence2": ["a", "b"], "label": [1.0, float("nan")], "idx": [0, 1]}
        Dataset.from_dict(rows).to_parquet(tmp_path / "stsb" / f"{split}.parquet")
    with pytest.raises(QgoftError, match=r"label nan in row 1 .*numbers from 0 to 5"):
        load(settings(tmp_path, "task=glue/stsb"))


def test_glue_truncated_file(tmp_path):
    write_rte(tmp_path / "rte")
    path = tmp_path / "rte" / "train.parquet"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(QgoftError, match="damaged or only partly downloaded"):
        load(settings(tmp_path, "task=glue/rte"))


def test_glue_empty_and_corrupt_files(tmp_path):
    write_rte(tmp_path / "rte")
    path = tmp_path / "rte" / "train.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(byte ^ 0xFF for byte in whole[40:400]) + whole[400:])
    with pytest.raises(QgoftError, match="damaged or only partly downloaded"):
        load(settings(tmp_path, "task=glue/rte"))
    path.write_bytes(whole)
    rows = Dataset.from_parquet(str(path)).select([])
    rows.to_parquet(path)
    with pytest.raises(QgoftError, match="rte, split train: "):
        load(settings(tmp_path, "task=glue/rte"))


@pytest.mark.parametrize(
    "names", [["train-00000-of-00002"], ["train", "train-00000-of-00001"], ["train-00000-of-00002", "train-00001-of-00003"]]
)
def test_glue_missing_and_mixed_shards(tmp_path, names):
    write_rte(tmp_path / "rte")
    whole = tmp_path / "rte" / "train.parquet"
    data = whole.read_bytes()
    whole.unlink()
    for name in names:
        (tmp_path / "rte" / f"{name}.parquet").write_bytes(data)
    with pytest.raises(QgoftError, match="incomplete or two copies"):
        load(settings(tmp_path, "task=glue/rte"))


def test_glue_missing_directory(tmp_path):
    with pytest.raises(QgoftError, match=r"has no glue/rte directory"):
        load(settings(tmp_path, "task=glue/rte"))


def test_glue_from_a_hub_snapshot(tmp_path, monkeypatch):
    """A stand-in for a hub: the result of snapshot_download. The real client runs in tests/tasks/test_hub.py."""
    sha = "0123456789abcdef0123456789abcdef01234567"
    write_rte(tmp_path / sha / "rte")
    for path in (tmp_path / sha / "rte").iterdir():
        path.rename(path.with_name(f"{path.stem}-00000-of-00001.parquet"))
    asked = {}

    def snapshot(repository, **words):
        asked.update(words, repository=repository)
        return str(tmp_path / sha)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    s = compose_settings(["protocol=small", "task=glue/rte", "method=qgoft"])
    files = resolve_data(s.task, s.data, ["train", "validation"])
    assert (files.source, files.revision) == ("nyu-mll/glue", sha)
    assert asked["repo_type"] == "dataset"
    assert asked["revision"] == "main"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("LocalEntryNotFoundError", "make fetch"),
        ("RepositoryNotFoundError", "does not exist or is private"),
        ("GatedRepoError", "accept its terms on"),
        ("RevisionNotFoundError", "this revision does not exist"),
    ],
)
def test_glue_hub_errors(monkeypatch, error, message):
    import httpx
    from huggingface_hub import errors

    kind = getattr(errors, error)
    response = httpx.Response(404, request=httpx.Request("GET", "http://127.0.0.1/x"))

    def fail(*args, **words):
        raise kind("no") if error == "LocalEntryNotFoundError" else kind("no", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(QgoftError, match=message):
        sources._download("org/name", "dataset", "main", ["*"])


def test_tokens_are_truncated_and_labelled(tmp_path):
    write_rte(tmp_path / "rte")
    rows = load(settings(tmp_path, "task=glue/rte", "train.max_length=6")).train
    assert list(rows["labels"]) == [0, 1, 0, 1]
    assert list(rows["idx"]) == [0, 1, 2, 3]
    assert all(len(row["input_ids"]) == len(row["attention_mask"]) <= 6 for row in rows)


def test_tokens_equal_the_tokenizers(tmp_path, monkeypatch):
    write_rte(tmp_path / "rte")
    s = settings(tmp_path, "task=glue/rte")
    first = load(s)
    encoded = load_tokenizer(weights_directory("pocket-deberta"))([f"train {t}" for t in SENTENCES], SENTENCES)
    assert list(first.train["input_ids"]) == encoded["input_ids"]
    monkeypatch.setattr(glue, "tokenize", lambda *a: pytest.fail("tokenised again"))
    again = load(s)
    assert again.train[:] == first.train[:]
    assert again.test[""][:] == first.test[""][:]


def test_changed_rows_are_tokenised_again(tmp_path):
    write_rte(tmp_path / "a" / "rte")
    write_rte(tmp_path / "b" / "rte", texts=[text.upper() for text in SENTENCES])
    one, two = (load(settings(tmp_path / name, "task=glue/rte")) for name in "ab")
    assert list(one.train["input_ids"]) != list(two.train["input_ids"])


def test_key_ignores_paths_and_logging(tmp_path):
    write_rte(tmp_path / "a" / "rte")
    write_rte(tmp_path / "b" / "rte")
    words = ["task=glue/rte", "model=pocket_deberta"]
    one = identify(settings(tmp_path / "a", *words))
    two = identify(settings(tmp_path / "b", *words, "results.root=elsewhere", "wandb.mode=offline", "train.eval_batch_size=7"))
    other = identify(settings(tmp_path / "a", *words, "seed=1"))
    assert one.key == two.key != other.key


def test_key_covers_every_setting():
    s = compose_settings([])
    kept = settings_in_key(s)
    assert {"protocol", "task", "model", "method", "train", "optim", "eval_scheme", "selection", "seed", "judge"} == set(kept)
    assert {
        "lr",
        "head_lr",
        "weight_decay",
        "warmup",
        "schedule",
        "max_grad_norm",
        "min_lr",
        "weight_decay_on_biases",
        "warmup_rounding",
    } == set(kept["optim"])
    assert isinstance(kept["model"]["target_sets"], str), "the chosen layers, and no others"
    assert "penalty" in kept["method"]
    assert "mixed_precision" in kept["train"]


def test_glue_real_rows(shared):
    """The real benchmark rows, if available: official evaluation splits are complete, training is marked a subset."""
    for task, rows in (("cola", 1043), ("mrpc", 408), ("rte", 277), ("stsb", 1500)):
        s = compose_settings(["protocol=goft_icml24", f"task=glue/{task}", "method=qgoft", f"data.root={shared / 'data'}"])
        parts = load(s)
        assert len(parts.test[""]) == rows == s.task.rows["validation"]
        assert parts.is_subset
    mnli = load(compose_settings(["protocol=small", "task=glue/mnli", "method=qgoft", f"data.root={shared / 'data'}"]))
    assert list(mnli.test) == ["mismatched"]
    assert (len(mnli.validation), len(mnli.test["mismatched"])) == (499, 500)
