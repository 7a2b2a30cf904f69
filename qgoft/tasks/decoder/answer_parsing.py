r"""Parsing of generated answers. Answers without a result are counted.

Numbers (GSM8K): the first number after the last "the answer is", with or without a colon. The reference is the number after "####".
Compared as exact fractions: 1,000 is 1000, 0.5 and \frac{1}{2} are 1/2, $3.00 is 3, 50% is 50, and U+2212 is a minus. A number that is
part of a longer expression (10^3, 1e3, 12:30, 2 1/2, 1,2,3, 2 + 2) does not count.

Formulas (MATH): the last \boxed{...}, otherwise the text after the last "the answer is" up to the end of the sentence or line; the
reference is the last \boxed{...} of the solution. Compared as text after removing differences without a value: spaces, $, \left and
\right, units in \text at the end, degree and percent signs, thousands separators; \dfrac and \tfrac are \frac, a/b is \frac{a}{b},
.5 is 0.5; equal numbers are equal, also mixed ones: 2 1/2 and 2\frac{1}{2} are 5/2.

Choices (commonsense): the label that occurs first, in any case, as a whole word: answer1 does not match answer10.
"""

import re
from fractions import Fraction

MARKER = re.compile(r"the answer is\s*:?", re.IGNORECASE)
MINUS = str.maketrans("\N{MINUS SIGN}", "-")
# Fractions of other terms than two integers, and mixed numbers such as 1\frac{1}{2}, are not parsed: a part of them would be another
# number.
TEX_FRACTION = re.compile(r"(?<!\d)\\[dt]?frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}")
UNREAD = re.compile(r"\\[dt]?frac")
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
# After a single letter, as in x2, a digit is part of a name.
NUMBER = re.compile(rf"(?<![\d.])(?<!\b[A-Za-z])-?\s?\$?\s?(?:{_WHOLE}(?:\.\d+)?|(?<![A-Za-z])\.\d+)(?:\s*/\s*{_WHOLE})?")
# Continuations that make a number part of another one: a mixed number, a power, 1e3, 2\u00bd, 12:30, 1,2,3, a product or a sum.
GOES_ON = re.compile(
    r"\s*\\[dt]?frac|\s\d+\s*/\s*\d|\d|[.,:/]\d|[eE][-+]?\d|[ \t]*\^|[ \t]*[\u00bc-\u00be\u2150-\u215e\u00b2\u00b3\u00b9]"
    r"|[ \t]*(?:[-+*\u00d7\u00f7]|x(?=[ \t]*\d)|\\times|\\cdot|\\div|\\pm)[ \t]*[\d\\]"
)
EQUALS = re.compile(r"[ \t]*=[ \t]*")


def read_number(text: str) -> Fraction | None:
    """Return the final number of a worked answer."""
    parts = MARKER.split(text)
    if len(parts) < 2:
        return None
    text = TEX_FRACTION.sub(r"\1/\2", parts[-1].translate(MINUS).replace("\\$", "$").replace("{,}", ","))
    found = NUMBER.search(text)
    if found is None or UNREAD.search(text[: found.start()]):
        return None
    value, rest = to_fraction(found.group()), text[found.end() :]
    equals = EQUALS.match(rest)
    again = NUMBER.match(rest, equals.end()) if equals else None
    if again is not None:  # 15/3 = 5
        value, rest = (value if to_fraction(again.group()) == value else None), rest[again.end() :]
    return None if GOES_ON.match(rest) else value


def reference_number(answer: str) -> Fraction | None:
    """Return the number after "####" of a GSM8K answer."""
    _, mark, tail = answer.rpartition("####")
    return to_fraction(tail) if mark else None


def to_fraction(text: str) -> Fraction | None:
    """Parse a number exactly; None if the text is not a number."""
    plain = re.sub(r"[\s,$%]", "", text).rstrip(".")
    if not re.fullmatch(r"[-+.\d/]+", plain):  # 1e9 could have arbitrarily many zeros
        return None
    try:
        return Fraction(plain)
    except (ValueError, ZeroDivisionError):
        return None


def boxed(text: str) -> str | None:
    r"""Return the content of the last \boxed{...} (or \fbox) with matched braces; also of \boxed 3."""
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].removeprefix("\\boxed").removeprefix("\\fbox")
    if not rest.lstrip().startswith("{"):
        return rest.split("$")[0].strip() or None
    rest = rest.lstrip()
    depth = 0
    for i, letter in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if depth == 0:
            return rest[1:i].strip()
    return None


def read_formula(text: str) -> str | None:
    """Return the final result of a worked answer, as written."""
    found = boxed(text)
    if found is not None:
        return found
    parts = MARKER.split(text)
    if len(parts) < 2:
        return None
    line = parts[-1].strip().split("\n")[0]
    # A period ends the sentence unless a digit follows it.
    return re.split(r"\.(?:\s|$)", line)[0].strip() or None


def same_formula(one: str, other: str) -> bool:
    """Return True if two results have the same value, by the rules above."""
    first, second = normalise_formula(one), normalise_formula(other)
    if first == second:
        return True
    numbers = _value(first), _value(second)
    return None not in numbers and numbers[0] == numbers[1]


_WORDS = re.compile(r"\\(?:text|mbox|mathrm|textbf)\{([^{}]*)\}")
# Units after a value, with their own power: 10\text{ cm}^2. The imaginary unit is not a unit.
_UNITS = re.compile(r"(?<=[^\s{(,=])\s*(?:\\(?:text|mbox|mathrm|textbf)\{(?!i\})[^{}]*\}(?:\^(?:\d|\{\d+\}))?\s*)+$")
_GAP = "\1"  # a space between two digits, as in a mixed number
_ROW = "\0"  # the end of a matrix row, two backslashes, of which the second with a space is a space
_DROPPED = ("\\left", "\\right", "\\!", "\\,", "\\;", "\\ ", "^\\circ", "^{\\circ}", "\\%", "%", "\\displaystyle")


def normalise_formula(text: str) -> str:
    """Return a result in a canonical spelling."""
    # Remove enclosing signs first, so that a unit or a period within $...$ is at the end.
    text = text.translate(MINUS).replace("\\$", "").replace("$", "").replace("{,}", ",")
    text = re.sub(r"\s*\^\s*", "^", text).strip().rstrip(".")
    text = text.split("=")[-1] if text.count("=") == 1 and len(text.split("=")[0].strip()) <= 2 else text
    # A word without a value is the answer (\text{even}); after a value it is a unit.
    whole = _WORDS.fullmatch(text)
    text = whole.group(1) if whole else _WORDS.sub(r"\1", _UNITS.sub("", text))
    text = text.replace("\\\\", _ROW)
    for piece in _DROPPED:
        text = text.replace(piece, "")
    text = text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac").replace("\\ldots", "...")
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"(?<![\d.,])\d{1,3}(?:\s\d{3})+(?![\d/])", lambda found: re.sub(r"\s", "", found.group()), text)
    text = re.sub(r"(?<=\d)\s+(?=\d)", _GAP, text)
    text = re.sub(r"\s+", "", text)
    # In (3,100) the comma is not a thousands separator.
    text = text.replace(",", "") if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", text) else text
    text = re.sub(r"\\frac(\d)\{", r"\\frac{\1}{", text)
    text = re.sub(r"\\sqrt(\w)", r"\\sqrt{\1}", text)
    text = re.sub(r"^(-?)(\d+)/(\d+)$", r"\1\\frac{\2}{\3}", text)
    text = re.sub(r"(?<![\d.])\.(?=\d)", "0.", text)
    return _MIXED.sub(_improper, text)


# 2 1/2, or 2\frac{1}{2}: an integer and a fraction.
_MIXED = re.compile(rf"^(-?)(\d{{1,50}})(?:{_GAP}(\d{{1,50}})/(\d{{1,50}})|\\frac\{{(\d{{1,50}})\}}\{{(\d{{1,50}})\}})$")


def _improper(found: re.Match[str]) -> str:
    sign, whole, *parts = found.groups()
    above, below = (int(part) for part in parts if part is not None)
    return rf"{sign}\frac{{{int(whole) * below + above}}}{{{below}}}"


def _value(text: str) -> Fraction | None:
    found = re.fullmatch(r"(-?)\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    if found:
        value = to_fraction(f"{found.group(2)}/{found.group(3)}")
        return None if value is None else value * (-1 if found.group(1) else 1)
    return to_fraction(text) if re.fullmatch(r"-?\d+(\.\d+)?", text) else None


def read_choice(text: str, labels: list[str]) -> str | None:
    """Return the label that a text names first."""
    pattern = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    found = re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", text.lower())
    return found.group() if found else None
