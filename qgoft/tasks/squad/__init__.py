"""SQuAD v1.1: data, model head and scores."""

from qgoft.tasks.squad.scoring import exact_match_and_f1

__all__ = ["exact_match_and_f1"]
