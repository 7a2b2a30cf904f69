"""MMLU's groups: sizes of the real test set, and the printed averages."""

from collections import Counter

import pytest
from datasets import Dataset

from qgoft.report.published import load_rows
from qgoft.tasks.decoder.mmlu_groups import GROUP_OF, GROUP_SIZES, GROUPS, group_accuracies


def test_mmlu_has_57_subjects():
    assert sum(map(len, GROUPS.values())) == len({subject for subjects in GROUPS.values() for subject in subjects}) == 57
    assert sum(GROUP_SIZES.values()) == 14042


def test_mmlu_test_sizes(shared):
    subjects = Dataset.from_parquet(str(shared / "data" / "mmlu" / "test.parquet"))["subject"]
    assert Counter(GROUP_OF[subject] for subject in subjects) == GROUP_SIZES


def test_mmlu_averages_over_questions():
    subjects = ["astronomy", "astronomy", "anatomy", "sociology"]
    found = group_accuracies(subjects, [True, False, True, True])
    assert found["stem"] == (50.0, 2)
    assert found["other"] == (100.0, 1)
    assert found["avg"] == (75.0, 4)
    assert "humanities" not in found


def test_mmlu_published_averages():
    """GOFT, table 2; LoRA's 5-shot average is the one that differs by more."""
    agree, far = 0, []
    for row in load_rows("goft-icml2024", "table2"):
        for shots in (5, 0):
            parts = {"stem": "stem", "social": "social", "humanities": "hum", "other": "other"}
            mean = sum(GROUP_SIZES[group] * row.values[f"mmlu{shots}_{name}"] for group, name in parts.items()) / 14042
            difference = abs(mean - row.values[f"mmlu{shots}_avg"])
            agree += difference < 0.0101
            if difference > 0.1:
                far.append((row.method, shots))
    assert agree == 10
    assert far == [("lora", 5)]


@pytest.mark.parametrize("subject", ["abstract_algebra", "moral_scenarios", "virology", "us_foreign_policy"])
def test_mmlu_unknown_subject(subject):
    assert subject in GROUP_OF
