"""VTAB-1K: the three layouts, decoding, and all kinds of damaged images and lists."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from qgoft.config.compose import compose_settings
from qgoft.config.keys import settings_in_key
from qgoft.errors import QgoftError
from qgoft.run_id import identify
from qgoft.tasks import sources
from qgoft.tasks.sources import resolve_data, split_names
from qgoft.tasks.vtab import files as picture_files
from qgoft.tasks.vtab.data import load_splits
from qgoft.tasks.vtab.images import PRESETS, PixelBatch, decode


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "cache"))


def encoded(seed=0, mode="RGB", size=(40, 30), kind="png"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


def settings(*words):
    return compose_settings(["protocol=psoft_iclr26", "task=vtab/dtd", "method=qgoft", "model=pocket_vit", *words])


def load(s, size=16):
    return load_splits(s, resolve_data(s.task, s.data, split_names(s.task, s.eval_scheme)), size)


def write_archive(directory, *, images=None, lists=None):
    """Ten images for training, three for validation, four for the test."""
    (directory / "images").mkdir(parents=True)
    counts = {"train800": 10, "val200": 3, "test": 4}
    lines = {name: [f"images/{name}_{i}.png {i % 5}" for i in range(count)] for name, count in counts.items()}
    lines["train800val200"] = lines["train800"] + lines["val200"]
    for name, count in counts.items():
        for i in range(count):
            (directory / f"images/{name}_{i}.png").write_bytes(encoded(len(name) * 100 + i))
    for name, content in (images or {}).items():
        if content is None:
            (directory / "images" / name).unlink()
        else:
            (directory / "images" / name).write_bytes(content)
    for name, found in {**lines, **(lists or {})}.items():
        (directory / f"{name}.txt").write_text("\n".join(found) + "\n")


def write_tables(directory, count=1000):
    directory.mkdir(parents=True)
    features = Features({"image": ImageFeature(), "label": Value("int64")})
    for name, rows in (("train", count), ("test", 5)):
        images = [{"bytes": encoded(i % 7, size=(8, 8)), "path": None} for i in range(rows)]
        Dataset.from_dict({"image": images, "label": [i % 47 for i in range(rows)]}, features=features).to_parquet(
            directory / f"{name}.parquet"
        )


def test_vtab_archive_layout(tmp_path):
    write_archive(tmp_path / "dtd")
    parts = load(settings(f"data.root={tmp_path}"))
    assert parts.rows == {"train800": 10, "val200": 3, "test": 4}
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (10, 3, 4)
    assert parts.is_subset
    assert not parts.data_fixes
    expected, _ = decode(encoded(800), 16, "vit_processor")
    assert np.array_equal(np.frombuffer(parts.train[0]["pixels"], np.uint8).reshape(16, 16, 3), expected)
    assert list(parts.train["labels"]) == [i % 5 for i in range(10)]
    assert [parts.test[i]["labels"] for i in range(4)] == parts.test_labels == [0, 1, 2, 3]


def test_eval_scheme_whole_trains_on_1000(tmp_path):
    write_archive(tmp_path / "dtd")
    s = compose_settings(["protocol=goft_icml24", "task=vtab/dtd", "method=qgoft", "model=pocket_vit", f"data.root={tmp_path}"])
    parts = load(s)
    assert (s.eval_scheme, s.selection) == ("whole", "last")
    assert parts.validation is None
    assert len(parts.train) == 13


def test_vtab_parquet_layout(tmp_path):
    write_tables(tmp_path / "vtab" / "dtd")
    parts = load(settings(f"data.root={tmp_path}"))
    assert parts.rows == {"train800": 800, "val200": 200, "test": 5}
    assert list(parts.validation["labels"])[:3] == [800 % 47, 801 % 47, 802 % 47]
    other = settings(f"task.path={tmp_path / 'vtab' / 'dtd'}")
    assert load(other).train[:] == parts.train[:]
    assert identify(other).key == identify(settings(f"data.root={tmp_path}")).key


def test_vtab_images_by_path_are_refused(tmp_path):
    write_tables(tmp_path / "vtab" / "dtd")
    rows = [{"bytes": None, "path": f"{i}.png"} for i in range(5)]
    pq.write_table(pa.table({"image": rows, "label": [0] * 5}), tmp_path / "vtab" / "dtd" / "test.parquet")
    with pytest.raises(QgoftError, match=r"test.parquet refers to images by path, which no checksum covers"):
        load(settings(f"data.root={tmp_path}"))


def test_vtab_decoded_images_are_cached(tmp_path, monkeypatch):
    write_archive(tmp_path / "dtd")
    s = settings(f"data.root={tmp_path}")
    first = load(s)
    monkeypatch.setattr("qgoft.tasks.vtab.images.decode", lambda *a: pytest.fail("decoded again"))
    assert load(s).train[:] == first.train[:]


def test_vtab_changed_image_changes_the_key(tmp_path):
    write_archive(tmp_path / "dtd")
    s = settings(f"data.root={tmp_path}")
    before = identify(s).key
    assert identify(s).key == before
    path = tmp_path / "dtd" / "images" / "train800_0.png"
    path.write_bytes(encoded(4711))
    assert identify(s).key != before


@pytest.mark.parametrize(("mode", "kind"), [("L", "png"), ("CMYK", "jpeg"), ("P", "png"), ("RGBA", "png"), ("1", "png")])
def test_vtab_image_modes_are_converted(tmp_path, mode, kind):
    content = encoded(mode=mode, kind=kind)
    pixels, stored = decode(content, 16)
    assert pixels.shape == (16, 16, 3)
    assert stored == mode
    write_archive(tmp_path / "dtd", images={"train800_3.png": content, "test_1.png": content})
    assert load(settings(f"data.root={tmp_path}")).data_fixes == {f"images of mode {mode}, converted to RGB": 2}


@pytest.mark.parametrize("name", ["train800_3.png", "val200_0.png", "test_2.png"])
@pytest.mark.parametrize("content", [encoded()[:200], b"no picture", b""])
def test_vtab_damaged_images_before_training(tmp_path, name, content):
    write_archive(tmp_path / "dtd", images={name: content})
    with pytest.raises(QgoftError, match=rf"1 of \d+ images cannot be decoded, such as vtab/dtd: {name}"):
        load(settings(f"data.root={tmp_path}"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("images/none.png 3", "which does not exist"),
        ("images/train800_0.png 47", "label 47; allowed are 0 to 46"),
        ("images/train800_0.png", "expected a path, a space and the number"),
        ("images/train800_0.png three", "expected a path, a space and the number"),
        ("../../etc/passwd 3", "outside the directory"),
        ("/etc/passwd 3", "outside the directory"),
    ],
)
def test_vtab_invalid_lists(tmp_path, line, message):
    write_archive(tmp_path / "dtd", lists={"val200": ["images/val200_0.png 0", line]})
    with pytest.raises(QgoftError, match=message):
        load(settings(f"data.root={tmp_path}"))


def test_vtab_missing_files(tmp_path):
    with pytest.raises(QgoftError, match="has no directory dtd with"):
        load(settings(f"data.root={tmp_path}"))
    with pytest.raises(QgoftError, match="is not a directory"):
        load(settings(f"task.path={tmp_path / 'nowhere'}"))
    write_archive(tmp_path / "dtd")
    (tmp_path / "dtd" / "test.txt").unlink()
    with pytest.raises(QgoftError, match=r"has no test\.txt, which split test needs"):
        load(settings(f"data.root={tmp_path}"))


def test_vtab_too_few_rows(tmp_path):
    write_tables(tmp_path / "dtd", count=700)
    with pytest.raises(QgoftError, match="no rows for split val200"):
        load(settings(f"data.root={tmp_path}"))


def zipped(path, directory, more=()):
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(directory.rglob("*")):
            packed.write(file, f"vtab-1k/{file.relative_to(directory)}")
        for name, content in more:
            packed.writestr(name, content)


def test_vtab_hub_zip(tmp_path, monkeypatch):
    write_archive(tmp_path / "data" / "dtd")
    snapshot = tmp_path / "abc123"
    snapshot.mkdir()
    zipped(snapshot / "vtab-1k.zip", tmp_path / "data")
    monkeypatch.setattr(sources, "_download", lambda *a: snapshot)
    s = settings()
    files = resolve_data(s.task, s.data, split_names(s.task, s.eval_scheme))
    assert (files.source, files.revision) == ("XiN0919/VTAB-1k", "abc123")
    assert load(s).rows["train800"] == 10
    (snapshot / "vtab-1k.zip").write_bytes(b"gone")
    assert load(s).rows["train800"] == 10, "it is unpacked once"


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "..\\outside.txt"])
def test_vtab_archive_path_traversal(tmp_path, name):
    write_archive(tmp_path / "data" / "dtd")
    zipped(tmp_path / "bad.zip", tmp_path / "data", [(name, "x")])
    with pytest.raises(QgoftError, match="points outside its directory"):
        picture_files.unpack(tmp_path / "bad.zip", "r")
    assert not list(tmp_path.rglob("outside.txt"))


def test_vtab_archive_too_large_or_broken(tmp_path, monkeypatch):
    write_archive(tmp_path / "data" / "dtd")
    zipped(tmp_path / "a.zip", tmp_path / "data")
    monkeypatch.setattr(picture_files, "MOST_BYTES", 1000)
    with pytest.raises(QgoftError, match="would unpack to more than"):
        picture_files.unpack(tmp_path / "a.zip", "r")
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:500])
    with pytest.raises(QgoftError, match="cannot be unpacked"):
        picture_files.unpack(tmp_path / "b.zip", "r")
    assert not (tmp_path / "cache" / "vtab-r").exists()


def test_vtab_batches_are_normalised():
    pixels = np.full((4, 4, 3), (255, 0, 51), np.uint8)
    batch = PixelBatch(4)([{"pixels": pixels.tobytes(), "labels": 3}] * 2)
    assert batch["labels"].tolist() == [3, 3]
    assert batch["pixel_values"].shape == (2, 3, 4, 4)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(PRESETS["imagenet"].mean)) / torch.tensor(PRESETS["imagenet"].deviation)
    torch.testing.assert_close(batch["pixel_values"][0, :, 0, 0], expected)


def test_vtab_resize_is_bicubic():
    content = encoded(size=(40, 30))
    reference = Image.open(io.BytesIO(content)).resize((24, 24), Image.Resampling.BICUBIC)
    assert np.array_equal(decode(content, 24)[0], np.asarray(reference))


def test_vtab_key_ignores_the_location(tmp_path):
    kept = settings_in_key(settings(f"task.path={tmp_path}"))
    assert "path" not in kept["task"]
    assert kept["task"]["options"] == {"classes": 47, "image": "vit_processor"}
    assert settings("method=lora").method.options == {"scale": 1.0, "dropout": 0.1}
    assert kept["train"]["drop_path"] == 0.0


def test_vtab_real_images(shared):
    for name, words, rows in (
        ("caltech101", [f"data.root={shared / 'data'}"], {"train800": 800, "val200": 200, "test": 510}),
        ("dtd", [f"task.path={shared / 'data' / 'vtab' / 'dtd10'}"], {"train800": 400, "test": 200}),
    ):
        splits = "test" if name == "caltech101" else "whole"
        selection = "best_validation" if splits == "test" else "last"
        s = compose_settings(
            [
                "protocol=psoft_iclr26",
                f"task=vtab/{name}",
                "method=qgoft",
                "model=pocket_vit",
                f"eval_scheme={splits}",
                f"selection={selection}",
                *words,
            ]
        )
        parts = load(s, 32)
        assert parts.is_subset
        if splits == "test":
            assert parts.rows == rows
        else:
            assert parts.rows == {"train800val200": 400, "test": 200}
        assert max(parts.test_labels) < s.task.options["classes"]
