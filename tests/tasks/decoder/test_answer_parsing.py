"""Parsing of answers in difficult texts."""

from fractions import Fraction

import pytest
from datasets import Dataset

from qgoft.config.compose import compose_settings
from qgoft.tasks.decoder.answer_parsing import boxed, read_choice, read_formula, read_number, reference_number, same_formula, to_fraction
from qgoft.tasks.read import read_rows


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 2 = 4. The answer is: 4", 4),
        ("The answer is 4.", 4),
        ("the ANSWER is : $1,234.50 per year", Fraction("1234.5")),
        ("The answer is: -7", -7),
        ("The answer is: - 7", -7),
        ("The answer is: 3/4 of a mile", Fraction(3, 4)),
        ("The answer is: .5", Fraction(1, 2)),
        ("The answer is: 50%", 50),
        ("The answer is: 3. No, the answer is: 5", 5),
        ("Let x = 12. The answer is: x = 12 dollars", 12),
        ("The answer is: 70,000", 70000),
        ("The answer is: \u22125", -5),
        (r"The answer is: $\frac{1}{2}$", Fraction(1, 2)),
        (r"The answer is: -\dfrac{3}{4}.", Fraction(-3, 4)),
        (r"The answer is: $\frac{-1}{2}$", Fraction(-1, 2)),
        (r"The answer is: $2\frac{1}{2}$", None),
        (r"The answer is: $2 \dfrac{1}{2}$", None),
        (r"The answer is: $\frac{1}{\sqrt{2}}$", None),
        (r"The answer is: $\frac{x}{2}$", None),
        ("The answer is: 2 1/2", None),
        (r"The answer is: 3, which is less than $\frac{7}{2}$", 3),
        (r"The answer is: $-\$5$", -5),
        ("The answer is: 1/0", None),
        ("The answer is: $1{,}234$", 1234),
        ("The answer is: 1,234,567.5", Fraction("1234567.5")),
        ("The answer is: 10^3", None),
        ("The answer is: 1e3", None),
        ("The answer is: 2\u00bd", None),
        ("The answer is: 12:30", None),
        ("The answer is: 1,2,3", None),
        ("The answer is: 12,34", None),
        ("The answer is: 5 x 10^3", None),
        (r"The answer is: $5 \times 10^3$", None),
        ("The answer is: 2 + 2", None),
        ("The answer is: 3.1.4", None),
        ("The answer is: 1/2/3", None),
        ("The answer is: 5, 6 and 7", 5),
        ("The answer is: 5 - that is all", 5),
        ("The answer is: x2 = 7 cm", 7),
        ("The answer is: 5km.", 5),
        ("The answer is: 18\n\n---\n\n### Next", 18),
        ("The answer is: 18\n- 3 apples", 18),
        ("The answer is: 5 -- because", 5),
        ("The answer is: 5\n+ 3", 5),
        ("The answer is: *5* (five)", 5),
        ("The answer is: 12 = 12.", 12),
        ("The answer is: 15/3 = 5", 5),
        ("The answer is: 2 = 3", None),
        ("The answer is: USD500", 500),
        ("The answer is: _5_", 5),
        ("The answer is: Rs.500", None),
        ("The answer is: 5 (five)", 5),
        ("The answer is: $1,000.50", Fraction("1000.5")),
        ("The answer is: 5-year", 5),
        ("The answer is: 10:", 10),
        ("The answer is unclear", None),
        ("there are 12 apples", None),
        ("", None),
    ],
)
def test_read_number(text, value):
    assert read_number(text) == value


def test_read_gsm8k_reference():
    assert reference_number("She has 2 + 3 = <<2+3=5>>5 eggs.\n#### 5") == 5
    assert reference_number("#### 1,080") == 1080
    assert reference_number("no mark, 5") is None
    assert to_fraction("$12.00") == 12
    assert to_fraction("twelve") is None


def test_gsm8k_references_score_100(shared):
    answers = Dataset.from_parquet(str(shared / "data" / "gsm8k" / "test.parquet"))["answer"]
    assert len(answers) == 1319
    for answer in answers:
        reference = reference_number(answer)
        assert reference is not None
        assert read_number(answer.replace("####", "The answer is:")) == reference


def test_commonsense_references_score_100(shared):
    directory = shared / "data" / "commonsense"
    for task in ("boolq", "piqa", "siqa", "winogrande", "arc_e", "arc_c", "obqa"):
        settings = compose_settings([f"task=commonsense/{task}"]).task
        rows = read_rows(directory / settings.config / "test.jsonl.gz", task, ["output", "answer"])
        assert len(rows) == compose_settings([f"task=commonsense/{task}", "protocol=psoft_iclr26", "method=psoft"]).task.rows["test"]
        for row in rows:
            assert read_choice(row["output"], settings.labels) == row["answer"].lower()


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{a_{1}+\sqrt{b}}", r"a_{1}+\sqrt{b}"),
        (r"\boxed 3$ is it", "3"),
        (r"\fbox{7}", "7"),
        (r"\boxed{unfinished", None),
        ("nothing", None),
    ],
)
def test_read_box(text, inside):
    assert boxed(text) == inside


def test_read_formula():
    assert read_formula(r"We get $x=3$. The answer is: $\frac{2}{3}$.") == r"$\frac{2}{3}$"
    assert read_formula("The answer is: 3.5. That is all.") == "3.5"
    assert read_formula(r"\boxed{9} The answer is: 8") == "9"
    assert read_formula("I give up") is None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{1}{2}", r"\dfrac{1}{2}"),
        (r"\frac12", r"\frac{1}{2}"),
        ("1/2", r"\frac{1}{2}"),
        ("0.5", r"\frac{1}{2}"),
        (".5", "0.5"),
        ("1,000", "1000"),
        (r"10\text{ cm}", "10"),
        (r"\text{even}", "even"),
        ("x = 5", "5"),
        (r"90^\circ", "90"),
        (r"\left( 1, 2 \right)", "(1,2)"),
        (r"50\%", "50"),
        (r"\$3", "3"),
        (r"\sqrt2", r"\sqrt{2}"),
        ("2.0", "2"),
        (r"-\frac{4}{2}", "-2"),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("\\begin{pmatrix} 1 \\\\\n-2 \\end{pmatrix}", "\\begin{pmatrix}1\\\\-2\\end{pmatrix}"),
        ("(3, 100)", "(3,100)"),
        (r"11,\! 111,\! 111,\! 100", "11111111100"),
        (r"10\text{ cm}^2", "10"),
        (r"864 \mbox{ inches}^{2}", "864"),
        (r"6\text{ miles per }\text{hour}", "6"),
        (r"$10\text{ cm}$", "10"),
        (r"10\text{ cm}.$", "10"),
        ("$5.$", "5"),
        ("4{,}000", "4000"),
        (r"90^ \circ", "90"),
        ("\u22123", "-3"),
    ],
)
def test_formulas_equal_in_two_notations(one, other):
    assert same_formula(one, other)
    assert same_formula(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "2"),
        (r"\frac{1}{2}", r"\frac{2}{1}"),
        (r"2\mathrm{i}", "2"),
        ("(1,2)", "(2,1)"),
        ("12", "1,2"),
        ("(3,100)", "(3100)"),
        (r"10\text{ cm}^2", "10^2"),
        (r"2\text{ or }3", "23"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", "12"),
        ("x+1", "x-1"),
        ("10", "10000"),
    ],
)
def test_formulas_not_equal(one, other):
    assert not same_formula(one, other)


def test_read_choice():
    answers = ["answer1", "answer2", "answer3"]
    assert read_choice("the correct answer is answer2.", answers) == "answer2"
    assert read_choice("Answer3", answers) == "answer3"
    assert read_choice("answer10 is not there", answers) is None
    assert read_choice("myanswer1", answers) is None
    assert read_choice("answer2, not answer1", answers) == "answer2"
    assert read_choice("True, it is", ["true", "false"]) == "true"
    assert read_choice("untrue", ["true", "false"]) is None
    assert read_choice("", answers) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2 2/3", "22/3", False),
        ("2 2/3", r"\frac{8}{3}", True),
        ("11 5/6", "71/6", True),
        (r"2\frac{1}{2}", "5/2", True),
        (r"-1\frac12", r"-\frac{3}{2}", True),
        ("2 3", "23", False),
        ("1 000", "1000", True),
        ("(1 000, 2 000)", "(1000,2000)", True),
        (r"\frac 1 2", "1/2", True),
        (r"\frac1 2", r"\frac{1}{2}", True),
        ("9" * 5000 + r"\frac{1}{2}", "3", False),
    ],
)
def test_read_mixed_number(one, other, same):
    assert same_formula(one, other) is same
    assert same_formula(other, one) is same
