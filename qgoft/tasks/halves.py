"""Rows divided the same way for every run: validation in halves, of which the first chooses and the second is reported (PSOFT, section 5)."""

import numpy as np
from datasets import Dataset

from qgoft.errors import QgoftError

HALVES_SEED = 0


def halve(rows: Dataset) -> tuple[Dataset, Dataset]:
    """The two halves of a permutation by seed 0; with an odd number of rows the second has one more."""
    order = np.random.default_rng(HALVES_SEED).permutation(len(rows))
    return rows.select(order[: len(order) // 2]), rows.select(order[len(order) // 2 :])


def hold_out(rows: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """All but `count` rows of a permutation by seed 0, and these rows.

    Raises:
        QgoftError: there are not that many rows.
    """
    if count >= len(rows):
        raise QgoftError(f"train.held_out={count}, but training has {len(rows)} rows; hold out fewer")
    order = np.random.default_rng(HALVES_SEED).permutation(len(rows))
    return rows.select(sorted(order[count:])), rows.select(sorted(order[:count]))
