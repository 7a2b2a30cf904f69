"""The validation rows divided in two, the same way for every run: the first half chooses, the second is reported (PSOFT, section 5)."""

import numpy as np
from datasets import Dataset

HALVES_SEED = 0


def halve(rows: Dataset) -> tuple[Dataset, Dataset]:
    """The two halves of a permutation by seed 0; with an odd number of rows the second has one more."""
    order = np.random.default_rng(HALVES_SEED).permutation(len(rows))
    return rows.select(order[: len(order) // 2]), rows.select(order[len(order) // 2 :])
