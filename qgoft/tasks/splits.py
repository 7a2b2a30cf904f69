"""Derived splits: halves of the validation split, and rows held out of training."""

import numpy as np
from datasets import Dataset

from qgoft.errors import QgoftError

HALVES_SEED = 0
# Seed of LLM-Adapters 8166572, which PSOFT's commonsense script follows.
HOLD_OUT_SEED = 42


def split_in_half(rows: Dataset, seed: int | None = None) -> tuple[Dataset, Dataset]:
    """Return two random halves of some rows; the second has one row more if their number is odd.

    Args:
        seed: seed of the run, as in PSOFT's script (783a5e2), which shuffles with NumPy's global generator. None for the same permutation
            in all runs.
    """
    if seed is None:
        order = np.random.default_rng(HALVES_SEED).permutation(len(rows))
    else:
        order = np.arange(len(rows))
        np.random.RandomState(seed).shuffle(order)
    return rows.select(order[: len(order) // 2]), rows.select(order[len(order) // 2 :])


def holdout_split(rows: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Return the remaining training rows, and `count` rows drawn with seed 42 for validation.

    Raises:
        QgoftError: there are fewer rows.
    """
    if count >= len(rows):
        raise QgoftError(f"train.holdout_rows={count}, but training has {len(rows)} rows; reduce it")
    divided = rows.train_test_split(test_size=count, shuffle=True, seed=HOLD_OUT_SEED)
    return divided["train"], divided["test"]
