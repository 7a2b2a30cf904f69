"""Products of Givens rotations arranged as a tree (GOFT, ICML 2024, section 4). The README in this directory has the derivation."""

from qgoft.ops.givens.blocks import identity_blocks, inverse_blocks, rotation_blocks, scale_blocks
from qgoft.ops.givens.dispatch import BACKENDS, force_backend
from qgoft.ops.givens.factors import Factors, build_factors
from qgoft.ops.givens.orderings import PAIRINGS, count_pairs, pairing_matrix
from qgoft.ops.givens.reference import pairs, reference_matrix
from qgoft.ops.givens.released_v2 import mix_neighbours, released_reference_matrix
from qgoft.ops.givens.rotate import apply_factors, mix_pairs, rotated_linear

__all__ = [
    "BACKENDS",
    "PAIRINGS",
    "Factors",
    "apply_factors",
    "build_factors",
    "count_pairs",
    "force_backend",
    "identity_blocks",
    "inverse_blocks",
    "mix_neighbours",
    "mix_pairs",
    "pairing_matrix",
    "pairs",
    "reference_matrix",
    "released_reference_matrix",
    "rotated_linear",
    "rotation_blocks",
    "scale_blocks",
]
