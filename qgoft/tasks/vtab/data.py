"""VTAB-1K (Zhai et al., 2019): nineteen image data sets with a thousand training images each, in three groups. configs/task/vtab describes
each task.

Splits by `eval_scheme`:
    test: train on train800, select on val200 (PSOFT, table 11)
    whole: train on all thousand images; there is no selection (FacT's framework, which GOFT follows)
    train800: train on train800; there is no selection (GOFT, appendix G.2)
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image

from qgoft.config.settings import RunSettings, TaskSettings
from qgoft.errors import QgoftError
from qgoft.tasks.cache import cached_rows
from qgoft.tasks.read import check_columns, read_parquet
from qgoft.tasks.sources import DataFiles
from qgoft.tasks.vtab.files import read_list
from qgoft.tasks.vtab.images import DEFAULT_PRESET, Encoded, LazyImageDataset, count_image_modes, write_examined

# Increment if reading of images changes, to invalidate cached images.
PICTURES_VERSION = 1
PARTS_OF_TRAIN = {"train800": range(800), "val200": range(800, 1000), "train800val200": range(1000)}
GROUPS = {
    "natural": ("cifar", "caltech101", "dtd", "oxford_flowers102", "oxford_iiit_pet", "svhn", "sun397"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": ("clevr_count", "clevr_dist", "dmlab", "kitti", "dsprites_loc", "dsprites_ori", "smallnorb_azi", "smallnorb_ele"),
}


@dataclass(frozen=True)
class Splits:
    """Pixels and labels for training and validation; test images are decoded when they are read."""

    train: Dataset
    validation: Dataset | None
    test: LazyImageDataset
    test_labels: list[int]
    rows: dict[str, int]
    is_subset: bool
    data_fixes: dict[str, int]


def load_splits(settings: RunSettings, files: DataFiles, size: int) -> Splits:
    """Read the lists, decode the training images (cached by checksum), and check that every test image can be decoded.

    Args:
        size: width and height of the model's input.

    Raises:
        QgoftError: a file or an image is damaged or missing, or a label is out of range.
    """
    task = settings.task
    classes, preset = task.options["classes"], task.options.get("image", DEFAULT_PRESET)

    def examined(split: str, *, with_pixels: bool) -> Dataset:
        depends_on = {
            "rows": [files.fingerprint, task.full_name, split, classes, PICTURES_VERSION],
            "pixels": [size, with_pixels, version("pillow"), *([] if preset == DEFAULT_PRESET else [preset])],
        }
        count, image = open_split(task, split, files)
        images = (image(i) for i in range(count))
        return cached_rows(depends_on, lambda path: write_examined(images, size, classes, path, preset, with_pixels=with_pixels))

    parts = {split: examined(split, with_pixels=split != "test") for split in files.files}
    rows = {split: len(part) for split, part in parts.items()}
    is_subset = any(rows[split] != official for split, official in task.rows.items() if split in rows)
    data_fixes = {**count_image_modes(*parts.values()), **count_listed_twice(files)}
    names = ["pixels", "labels"]
    train, validation = parts["train800val200" if settings.eval_scheme == "whole" else "train800"], parts.get("val200")
    count, image = open_split(task, "test", files)
    return Splits(
        train.select_columns(names),
        None if validation is None else validation.select_columns(names),
        LazyImageDataset(image, count, size, preset),
        list(parts["test"]["labels"]),
        rows,
        is_subset,
        data_fixes,
    )


def count_listed_twice(files: DataFiles) -> dict[str, int]:
    """Count the images that a list names twice, and the test images that occur in training."""
    listed = {split: [path for path, _ in read_list(paths[0])] for split, paths in files.files.items() if paths[0].suffix == ".txt"}
    found = {f"images that the list {split} names twice": len(paths) - len(set(paths)) for split, paths in listed.items()}
    trained = {path for split, paths in listed.items() if split != "test" for path in paths}
    found["images of test that are in train"] = sum(path in trained for path in listed.get("test", []))
    return {what: count for what, count in found.items() if count}


def open_split(task: TaskSettings, split: str, files: DataFiles) -> tuple[int, Callable[[int], Encoded]]:
    """Return the number of images of a split, and a function from an index to the encoded image.

    Raises:
        QgoftError: the split cannot be read.
    """
    (path,) = files.files[split]
    if path.suffix == ".txt":
        listed = read_list(path)
        return len(listed), lambda i: (f"{task.full_name}: {listed[i][0].name}", *listed[i])
    rows = read_parquet([path], task.full_name)
    check_columns(rows, task.full_name, path.name, ["image", "label"], text=[])
    if not pa.types.is_integer(rows.data.column("label").type):
        raise QgoftError(
            f"{task.full_name}: column label of {path.name} holds {rows.data.column('label').type}; expected the number of a class; correct the data"
        )
    rows = rows.cast_column("image", Image(decode=False))
    if pc.struct_field(rows.data.column("image"), "bytes").null_count:
        raise QgoftError(
            f"{task.full_name}: {path.name} refers to images by path, which no checksum covers; save it with the images inside (docs/data.md)"
        )
    if split in PARTS_OF_TRAIN:
        wanted = PARTS_OF_TRAIN[split]
        rows = rows.select(range(wanted.start, min(wanted.stop, len(rows))))
    if not len(rows):
        raise QgoftError(
            f"{task.full_name}: {path.name} has no rows for split {split}; train.parquet needs 800 rows of train800 and then 200 of val200"
        )

    def image(i: int) -> Encoded:
        row = rows[i]
        return (
            f"{task.full_name}: {path.name}, row {i} of {split}",
            row["image"]["bytes"],
            int(row["label"]),
        )

    return len(rows), image
