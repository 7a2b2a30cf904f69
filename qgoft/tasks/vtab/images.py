"""Decoding of images, their problems, and batches of tensors."""

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from qgoft.errors import QgoftError, check_choice


class Preset(NamedTuple):
    """Preprocessing: interpolation of the resize, and mean and standard deviation of the channels."""

    resample: Image.Resampling
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]


# imagenet: FacT's framework (PETL-ViT 026e4f1), which GOFT follows. vit_processor: the model's own image processor, as in PSOFT's script.
PRESETS = {
    "imagenet": Preset(Image.Resampling.BICUBIC, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "vit_processor": Preset(Image.Resampling.BILINEAR, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
DEFAULT_PRESET = "imagenet"
NOT_A_PICTURE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning)
Encoded = tuple[str, bytes | Path, int]  # name for messages, image, label


def get_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        QgoftError: an unknown name.
    """
    check_choice("task.options.image", name, list(PRESETS), "change task.options.image")
    return PRESETS[name]


def decode(image: bytes | Path, size: int, preset: str = DEFAULT_PRESET) -> tuple[np.ndarray, str]:
    """Return an image as [size, size, 3] uint8, resized, and its stored mode.

    Grey, palette, transparent and CMYK images are converted to RGB by Pillow.

    Raises:
        OSError and others of NOT_A_PICTURE: it is damaged.
    """
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        mode = opened.mode
        rgb = opened.convert("RGB")
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), get_preset(preset).resample)
    return np.asarray(rgb), mode


def write_examined(
    images: Iterator[Encoded], size: int, classes: int, path: Path, preset: str = DEFAULT_PRESET, *, with_pixels: bool
) -> None:
    """Decode every image once and write labels and modes, and for repeatedly read splits the pixels.

    Raises:
        QgoftError: an image cannot be decoded, or a label is out of range. All are counted, the first is named.
    """
    features = Features({"labels": Value("int64"), "mode": Value("string"), **({"pixels": Value("binary")} if with_pixels else {})})
    damaged: list[str] = []
    count = 0
    with ArrowWriter(path=str(path), features=features) as writer:
        for name, image, label in images:
            count += 1
            if not 0 <= label < classes:
                raise QgoftError(f"{name} has label {label}; allowed are 0 to {classes - 1}; correct the data")
            try:
                pixels, mode = decode(image, size, preset)
            except NOT_A_PICTURE as error:
                damaged.append(f"{name} ({error})")
                continue
            writer.write({"labels": label, "mode": mode, **({"pixels": pixels.tobytes()} if with_pixels else {})})
        writer.finalize()
    if damaged:
        raise QgoftError(
            f"{len(damaged)} of {count} images cannot be decoded, such as {damaged[0]}; they are truncated or not images; fetch them again"
        )


def count_image_modes(*parts: Dataset) -> dict[str, int]:
    """Count the images that were not stored as RGB."""
    modes = Counter(mode for part in parts for mode in part["mode"])
    return {f"images of mode {mode}, converted to RGB": count for mode, count in sorted(modes.items()) if mode != "RGB"}


class LazyImageDataset(TorchDataset):
    """Images decoded on access, for splits that are read once."""

    def __init__(self, images: Callable[[int], Encoded], count: int, size: int, preset: str = DEFAULT_PRESET):
        self.images, self.count, self.size, self.preset = images, count, size, preset

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        _, image, label = self.images(index)
        return {"pixels": decode(image, self.size, self.preset)[0].tobytes(), "labels": label}


class PixelBatch:
    """Convert rows with `pixels` (size * size * 3 bytes) and `labels` to normalised pixel_values [n, 3, size, size] float32 and labels [n]."""

    def __init__(self, size: int, preset: str = DEFAULT_PRESET):
        self.size = size
        _, mean, deviation = get_preset(preset)
        self.mean, self.deviation = (torch.tensor(values).view(3, 1, 1) for values in (mean, deviation))

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        stacked = np.stack([np.frombuffer(row["pixels"], np.uint8) for row in rows]).reshape(len(rows), self.size, self.size, 3)
        pixels = torch.from_numpy(stacked).permute(0, 3, 1, 2).float().div_(255)
        return {"pixel_values": pixels.sub_(self.mean).div_(self.deviation), "labels": torch.tensor([row["labels"] for row in rows])}
