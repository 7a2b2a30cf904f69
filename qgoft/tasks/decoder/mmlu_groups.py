"""MMLU: 57 subjects in Hendrycks's four groups, accuracies and averages over questions (Hendrycks et al., 2021).

These groups reproduce ten of the twelve averages of GOFT's table 2 to 0.01 (tests/tasks/decoder/test_mmlu.py); the groups of lm-eval,
which count anatomy as STEM, do not.
"""

from collections.abc import Sequence

from qgoft.pocket.language.choices import SUBJECTS as POCKET_SUBJECTS

GROUPS = {
    "stem": (
        "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics college_physics "
        "computer_security conceptual_physics electrical_engineering elementary_mathematics high_school_biology high_school_chemistry "
        "high_school_computer_science high_school_mathematics high_school_physics high_school_statistics machine_learning"
    ).split(),
    "social": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_microeconomics "
        "high_school_psychology human_sexuality professional_psychology public_relations security_studies sociology us_foreign_policy"
    ).split(),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law jurisprudence "
        "logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law world_religions"
    ).split(),
    "other": (
        "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing medical_genetics "
        "miscellaneous nutrition professional_accounting professional_medicine virology"
    ).split(),
}
# Questions of the official test set.
GROUP_SIZES = {"stem": 3018, "social": 3077, "humanities": 4705, "other": 3242}
GROUP_OF = {subject: group for group, subjects in GROUPS.items() for subject in subjects}
GROUP_OF |= {subject: group for subject, (group, _) in POCKET_SUBJECTS.items()}
AVERAGE = "avg"


def group_accuracies(subjects: Sequence[str], right: Sequence[bool]) -> dict[str, tuple[float, int]]:
    """Return group -> (accuracy in percent, number of questions); `avg` is over all questions."""
    counts = {group: [0, 0] for group in (*GROUPS, AVERAGE)}
    for subject, is_right in zip(subjects, right, strict=True):
        for group in (GROUP_OF[subject], AVERAGE):
            counts[group][0] += is_right
            counts[group][1] += 1
    return {group: (100 * hits / count, count) for group, (hits, count) in counts.items() if count}
