"""Scores against verdicts of the published code: MetaMath fe667b1, hendrycks/math 985bdc1, LLM-Adapters 8166572, SQuAD's official script.
The verdicts are recorded here; `make fidelity` runs the code."""

import numpy as np
import pytest

from qgoft.tasks.decoder import answer_parsing as answers
from qgoft.tasks.decoder import published_rules
from qgoft.tasks.decoder.solvers import RULES
from qgoft.tasks.metrics import compute_score
from qgoft.tasks.squad.scoring import exact_match_and_f1

pytestmark = pytest.mark.fidelity

# Two results; whether they are equal for MetaMath, for hendrycks/math, and by this project's rule.
PAIRS = [
    ("$3$", "3", False, False, True),
    ("3.", "3", False, False, True),
    ("50%", "50", False, False, True),
    ("50\\%", "50", True, True, True),
    ("\\text{even}", "even", False, False, True),
    ("5\\text{ cm}", "5", True, True, True),
    ("5\\text{cm}", "5", False, False, True),
    ("1.0", "1", False, False, True),
    ("01", "1", False, False, True),
    ("3/1", "3", False, False, True),
    ("a=a", "a", True, True, True),
    ("x=5", "5", True, True, True),
    ("xyz=5", "5", False, False, False),
    ("0.5", "\\frac{1}{2}", True, True, True),
    (".5", "\\frac{1}{2}", True, True, True),
    ("0.50", "\\frac{1}{2}", False, False, True),
    ("1/2", "\\frac{1}{2}", True, True, True),
    ("\\frac12", "\\frac{1}{2}", True, True, True),
    ("\\frac1{2}", "\\frac{1}{2}", True, True, True),
    ("\\dfrac{1}{2}", "\\frac12", True, True, True),
    ("\\tfrac{1}{2}", "1/2", True, True, True),
    ("-1/2", "-\\frac{1}{2}", False, False, True),
    ("-1/2", "\\frac{-1}{2}", True, True, True),
    ("x/2", "\\frac{x}{2}", False, False, False),
    ("\\dfrac{x}{2}/3", "\\frac{x}{2}/3", False, True, True),
    ("x/2 ", "x/2", False, True, True),
    ("\\pi/4", "\\pi/4", True, True, True),
    ("\\sqrt3", "\\sqrt{3}", True, True, True),
    ("2\\sqrt 3", "2\\sqrt{3}", False, False, True),
    ("\\sqrt", "\\sqrt", True, True, True),
    ("\\frac", "\\frac ", False, False, True),
    ("1,000", "1000", False, False, True),
    ("10,\\!000", "10,000", True, True, True),
    ("(1, 2)", "(1,2)", True, True, True),
    ("\\left(1,2\\right)", "(1,2)", True, True, True),
    ("90^\\circ", "90", True, True, True),
    ("90^{\\circ}", "90", True, True, True),
    ("\\$5", "5", True, True, True),
    ("$5", "5", False, False, True),
    ("5 \\text{ a}\\text{ b}", "5", False, False, True),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\2\\end{pmatrix}", True, True, False),
    ("\\frac{72}1", "\\frac{72}{1}", False, False, False),
    ("2\n", "2", True, True, True),
    (" 2", "2", True, True, True),
    ("2x", "2 x", True, True, True),
    ("x^2", "x^{2}", False, False, False),
    ("\\frac{1}{2}", "\\frac{2}{4}", False, False, True),
    ("0.25", "\\frac{1}{4}", False, False, True),
    ("k = .5", "0.5", True, True, True),
    ("", "0", False, False, False),
    ("", "", True, True, True),
]


@pytest.mark.parametrize(("one", "other", "metamath", "hendrycks", "own"), PAIRS)
def test_math_equivalence(one, other, metamath, hendrycks, own):
    assert published_rules.is_equivalent(one, other) is metamath
    assert published_rules.is_equivalent(one, other, rule="hendrycks") is hendrycks
    assert answers.same_formula(one, other) is own


def test_math_equivalence_without_a_result():
    assert published_rules.is_equivalent(None, None)
    assert not published_rules.is_equivalent(None, "1")
    with pytest.raises(ValueError, match="allowed are 'metamath', 'hendrycks'"):
        published_rules.is_equivalent("1", "1", rule="exact")


@pytest.mark.parametrize(
    ("text", "published", "own"),
    [
        ("So 6 * 3 = 18. The answer is: 18", "18", "18"),
        ("The answer is 18", None, "18"),
        ("the answer is: 18", None, "18"),
        ("The answer is:18", None, "18"),
        ("The answer is: $1,234", "1234", "1234"),
        ("The answer is: 1,234,567", "1234", "1234567"),
        ("The answer is: 2.5", "2", "5/2"),
        ("The answer is: 3.5", "4", "7/2"),
        ("The answer is: 7/2", "4", "7/2"),
        ("The answer is: 3/0", "3", None),
        ("The answer is: -$5", "5", "-5"),
        ("The answer is: none", None, None),
        ("The answer is: 4\nThe answer is: 5", "5", "5"),
        ("The answer is: /5", None, "5"),
        ("The answer is: " + "9" * 400, None, str(int("9" * 400))),
    ],
)
def test_gsm8k_parsing(text, published, own):
    assert RULES["number"]["published"].read(text) == published
    assert RULES["number"]["own"].read(text) == own


@pytest.mark.parametrize(
    ("text", "published"),
    [
        ("The answer is: \\frac{1}{2}.", "\\frac{1}{2}"),
        ("The answer is: 3.\nMore text.", "3"),
        ("The answer is: 1.5 .", "1.5"),
        ("The answer is: x.y.\n", "x.y"),
        ("It is \\boxed{3}", None),
        ("The answer is: $3$", "$3$"),
    ],
)
def test_math_parsing(text, published):
    assert published_rules.read_metamath_formula(text) == published


@pytest.mark.parametrize(
    ("solution", "published"),
    [
        ("so \\boxed{1} or \\boxed{\\frac{1}{2}}.", "\\frac{1}{2}"),
        ("\\boxed{a{b}c}", "a{b}c"),
        ("\\boxed 5", None),
        ("\\fbox{5}", None),
        ("\\boxed{5", None),
        ("none", None),
    ],
)
def test_math_reference(solution, published):
    assert published_rules.read_boxed_reference(solution) == published


@pytest.mark.parametrize(
    ("text", "labels", "published", "own"),
    [
        ("the correct answer is answer1", ["answer1", "answer2"], "answer1", "answer1"),
        ("answer10", ["answer1", "answer2"], "answer1", None),
        ("Answer2, not answer1", ["answer1", "answer2"], "answer1", "answer2"),
        ("answer4 or answer1", ["answer1", "answer2", "answer3"], "answer4", "answer1"),
        ("True", ["true", "false"], None, "true"),
        ("untrue", ["true", "false"], "true", None),
        ("neither", ["option1", "option2"], None, None),
    ],
)
def test_commonsense_parsing(text, labels, published, own):
    assert published_rules.read_first_label(text, labels) == published
    assert answers.read_choice(text, labels) == own


def test_squad_missing_id_scores_zero():
    references = {"a": ["the"], "b": ["cat"]}
    assert exact_match_and_f1({"b": "cat"}, references)["exact_match"] == 50
    assert exact_match_and_f1({"a": "", "b": "cat"}, references)["exact_match"] == 100  # an answer that normalises to nothing
    assert exact_match_and_f1({}, {"a": ["a."]}) == {"exact_match": 0, "f1": 0, "n": 1, "missing": 1, "unknown": 0}


def test_stsb_pearson_is_not_averaged():
    ours, labels = np.array([0.0, 1.0, 2.0, 9.0]), np.array([0.0, 1.0, 3.0, 2.0])
    centred = [values - values.mean() for values in (ours, labels)]
    pearson = 100 * (centred[0] @ centred[1]) / np.sqrt((centred[0] @ centred[0]) * (centred[1] @ centred[1]))
    assert compute_score("pearson", ours, labels) == pytest.approx(pearson)
    assert compute_score("pearson_spearman", ours, labels) != pytest.approx(pearson, abs=1)
