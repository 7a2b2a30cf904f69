"""Divisions of a split: validation in halves, of which the first chooses and the second is reported, and rows held out of training."""

import numpy as np
from datasets import Dataset

from qgoft.errors import QgoftError

HALVES_SEED = 0
# LLM-Adapters 8166572, which PSOFT's commonsense script follows.
HOLD_OUT_SEED = 42


def split_in_half(rows: Dataset, seed: int | None = None) -> tuple[Dataset, Dataset]:
    """Return the two halves of a permutation; the second has one row more if their number is odd.

    Args:
        seed: the run's, as in PSOFT's script (783a5e2), which shuffles with the global generator of NumPy that the run has seeded. None for
            one permutation for all runs.
    """
    if seed is None:
        order = np.random.default_rng(HALVES_SEED).permutation(len(rows))
    else:
        order = np.arange(len(rows))
        np.random.RandomState(seed).shuffle(order)
    return rows.select(order[: len(order) // 2]), rows.select(order[len(order) // 2 :])


def holdout_split(rows: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """Return the training rows that stay, and `count` rows drawn with seed 42 that only choose.

    Raises:
        QgoftError: there are not that many rows.
    """
    if count >= len(rows):
        raise QgoftError(f"train.holdout_rows={count}, but training has {len(rows)} rows; hold out fewer")
    divided = rows.train_test_split(test_size=count, shuffle=True, seed=HOLD_OUT_SEED)
    return divided["train"], divided["test"]
