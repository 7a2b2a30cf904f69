"""Scoring rules of the code behind the papers' scores. This project's own rules are in `answer_parsing`.

- GSM8K and MATH: MetaMath fe667b1, which PSOFT's evaluation follows. Both need the literal text "The answer is: ".
- MATH's equivalence: MetaMath's, and hendrycks/math 985bdc1, which differs in one step.
- Commonsense: LLM-Adapters 8166572.

Implemented from their behaviour; `make fidelity` compares with the original code.
"""

import re
from fractions import Fraction

MARKER = "The answer is: "
# One sign, digits, at most one separator, digits: 1,234,567 is read as 1,234.
NUMBER = re.compile(r"[\-+]?\d*[.,/]?\d+")


def read_metamath_number(text: str) -> int | None:
    """Return the integer that MetaMath reads after the last marker, rounded half to even; None if it reads nothing."""
    _, marker, tail = text.rpartition(MARKER)
    found = NUMBER.search(tail) if marker else None
    if found is None:
        return None
    written = found.group()
    try:
        if "/" not in written:
            return round(float(written.replace(",", "")))
        numerator, denominator = written.split("/")
        return round(float(numerator)) if denominator == "0" else round(Fraction(int(numerator), int(denominator)))
    except (ValueError, OverflowError, ZeroDivisionError):
        return None


def read_metamath_formula(text: str) -> str | None:
    """Return the text after the last marker up to the first period that ends a line, without a final period; None without a marker."""
    _, marker, tail = text.rpartition(MARKER)
    if not marker:
        return None
    line = tail.split(".\n")[0].strip()
    return line.removesuffix(".").strip()


def read_boxed_reference(solution: str) -> str | None:
    r"""Return the content of the last \boxed{...} of a reference solution; None for \fbox and for unbalanced braces."""
    start, prefix = solution.rfind("\\boxed"), "\\boxed{"
    if start < 0 or not solution.startswith(prefix, start):
        return None
    depth = 0
    for end in range(start, len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        if solution[end] == "}" and depth == 0:
            return solution[start + len(prefix) : end]
    return None


def is_equivalent(one: str | None, other: str | None, *, rule: str = "metamath") -> bool:
    """Return True if two results of MATH are equal after the normalisation of the published evaluation.

    Args:
        rule: `metamath` or `hendrycks`. Under the first, a single slash between anything but integers stops the normalisation, and the raw
            texts are compared.

    Raises:
        ValueError: another rule.
    """
    if rule not in ("metamath", "hendrycks"):
        raise ValueError(f"rule={rule!r}: allowed are 'metamath', 'hendrycks'")
    if one is None or other is None:
        return one is other
    try:
        return _normalise(one, rule) == _normalise(other, rule)
    except (IndexError, ValueError):
        return one == other


# Plain replacements, in this order.
_REPLACED = (
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""),
    ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", ""),
)  # fmt: skip


def _normalise(text: str, rule: str) -> str:
    """Normalise a result.

    Raises:
        IndexError, ValueError: forms on which the published code fails.
    """
    for old, new in _REPLACED:
        text = text.replace(old, new)
    if "\\text{ " in text:
        text, _ = text.split("\\text{ ")  # more than one unit is an error
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if not text:
        return text
    if text[0] == ".":
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:
        text = sides[1]
    text = _brace_arguments(text, "\\sqrt", 1).replace(" ", "")
    text = _brace_arguments(text, "\\frac", 2)
    if text == "0.5":
        text = "\\frac{1}{2}"
    return _slash_to_fraction(text, rule)


def _brace_arguments(text: str, command: str, count: int) -> str:
    """Put braces around the one-character arguments of a command. Return the text unchanged if a fraction has too few arguments."""
    head, *pieces = text.split(command)
    for piece in pieces:
        if piece[0] != "{" and len(piece) < count:
            return text
        if piece[0] == "{":
            braced = piece
        elif count == 2 and piece[1] != "{":
            braced = f"{{{piece[0]}}}{{{piece[1]}}}{piece[2:]}"
        else:
            braced = f"{{{piece[0]}}}{piece[1:]}"
        head += command + braced
    return head


def _slash_to_fraction(text: str, rule: str) -> str:
    parts = text.split("/")
    if len(parts) != 2:
        return text
    try:
        numerator, denominator = map(int, parts)
    except ValueError:
        if rule == "metamath":
            raise
        return text
    return f"\\frac{{{numerator}}}{{{denominator}}}" if text == f"{numerator}/{denominator}" else text


def read_first_label(text: str, labels: list[str]) -> str | None:
    """Return the label that occurs first in a text, case-sensitive, also inside a word; None without one.

    Tasks with numbered answers are searched for answer1 to answer5, whatever their number of choices.
    """
    if labels[0] == "answer1":
        labels = [f"answer{number}" for number in range(1, 6)]
    found = re.search("|".join(map(re.escape, labels)), text)
    return found.group() if found else None
