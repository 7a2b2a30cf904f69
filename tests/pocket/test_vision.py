"""The synthetic VTAB tasks: seeded, distinct, within their classes, and not predictable from the mean colour."""

import numpy as np
import pytest

from qgoft.pocket.data import pocket_files, pocket_fingerprint
from qgoft.pocket.vision.draw import OUTLINES, SIZE, TEXTURES, outline, texture
from qgoft.pocket.vision.scenes import ATTRIBUTES, scene
from qgoft.pocket.vision.tasks import NOISE, SIZES, TASKS, finish, generate_pictures
from qgoft.tasks.vtab.data import GROUPS


def test_vtab_tasks_have_a_synthetic_version():
    assert set(TASKS) == {name for names in GROUPS.values() for name in names}
    assert len(TASKS) == 19


@pytest.mark.parametrize("name", list(TASKS))
def test_images_depend_on_seed_and_label(name):
    draw, classes = TASKS[name]

    def images(seed):
        random = np.random.default_rng(seed)
        return np.stack([finish(draw(random, label), random, NOISE) for label in range(classes)])

    one, again, other = images(0), images(0), images(1)
    assert one.shape == (classes, SIZE, SIZE, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_splits_are_seeded_and_disjoint(monkeypatch):
    monkeypatch.setitem(SIZES, "train800", 40)
    monkeypatch.setitem(SIZES, "test", 40)
    train, labels = generate_pictures("svhn", "train800")
    again, _ = generate_pictures("svhn", "train800")
    test, _ = generate_pictures("svhn", "test")
    assert np.array_equal(train, again)
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in test}
    assert set(labels) <= set(range(10))


@pytest.mark.parametrize("name", [*OUTLINES, "ring", "tee"])
def test_outlines_stay_within_radius(name):
    mask = outline(name, 0.1, -0.1, 0.5, 0.7)
    ys, xs = np.nonzero(mask > 0.5)
    away = np.hypot(xs / (SIZE - 1) * 2 - 1.1, ys / (SIZE - 1) * 2 - 0.9)
    assert len(xs) > 5
    # The corner of a square is outside its inner radius.
    assert away.max() < 0.5 * 1.5


@pytest.mark.parametrize("name", TEXTURES)
def test_textures_range_from_0_to_1(name):
    pattern = texture(name, np.random.default_rng(0))
    assert pattern.shape == (SIZE, SIZE)
    assert 0 <= pattern.min() < pattern.max() <= 1


def test_scene_attributes_in_range():
    random = np.random.default_rng(0)
    for _ in range(200):
        _, found = scene(random)
        assert len(found) == len(ATTRIBUTES)
        for value, count in zip(found, ATTRIBUTES.values(), strict=True):
            assert -1 <= value < count
        assert found[0] >= 0


def test_synthetic_files_and_real_digits(tmp_path, monkeypatch):
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path))
    directory = pocket_files("vtab", "digits")
    assert sorted(path.name for path in directory.iterdir()) == ["fingerprint.txt", "sha256.json", "test.parquet", "train.parquet"]
    assert len(pocket_fingerprint(directory)) == 64
    from datasets import Dataset

    train, test = (Dataset.from_parquet(str(directory / f"{name}.parquet")) for name in ("train", "test"))
    assert (len(train), len(test)) == (1000, 797)
    assert train[0]["image"].size == (8, 8)
    assert set(train["label"]) == set(range(10))
