"""Products of Givens rotations arranged as a tree (GOFT, ICML 2024, section 4). See the README beside this file."""

from qgoft.ops.givens.blocks import identity_blocks, inverse_blocks, rotation_blocks
from qgoft.ops.givens.dispatch import PATHS, force_path
from qgoft.ops.givens.factors import Factors, build_factors
from qgoft.ops.givens.orderings import PAIRINGS, count_pairs, pairing_matrix
from qgoft.ops.givens.reference import pairs, reference_matrix
from qgoft.ops.givens.released_v2 import mix_neighbours, released_reference_matrix
from qgoft.ops.givens.rotate import mix_factors, mix_pairs, mixed_linear

__all__ = [
    "PAIRINGS",
    "PATHS",
    "Factors",
    "build_factors",
    "count_pairs",
    "force_path",
    "identity_blocks",
    "inverse_blocks",
    "mix_factors",
    "mix_neighbours",
    "mix_pairs",
    "mixed_linear",
    "pairing_matrix",
    "pairs",
    "reference_matrix",
    "released_reference_matrix",
    "rotation_blocks",
]
