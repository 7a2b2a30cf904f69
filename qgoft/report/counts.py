"""Comparison of parameter counts with the printed ones."""

import re
from decimal import Decimal

UNITS = {"K": 10**3, "M": 10**6, "B": 10**9}
# Printed counts that differ from the described rows: paper, table, row -> explanation.
REASONS = {
    ("goft-icml2024", "table1", "fact_tk"): "FacT's own code has 86,528 at this rank",
    ("goft-icml2024", "table1", "adalora"): "trained at rank 3, pruned to a budget of rank 2",
    (
        "goft-icml2024",
        "table3",
        "fact_tt_r16",
    ): "copied from FacT: ranks up to 16, by task; r=16 has 61,440 on all linear layers, as in FacT's code, 36,864 on query, key, value and output",
    ("goft-icml2024", "table3", "fact_tk_r32"): "copied from FacT: ranks up to 32, by task",
    ("goft-icml2024", "table2", "adalora"): "the paper states no rank",
    ("psoft-iclr2026", "table3", "full"): "with a head of 100 classes",
    (
        "psoft-iclr2026",
        "table5",
        "oft_v2_b32",
    ): "blocks of 32 have 496 entries each; no choice among LLaMA's seven layers gives what is printed",
    (
        "psoft-iclr2026",
        "table18",
        "psoft_r64",
    ): "196 layers of 64 x 63 / 2 + 128 parameters are 420,224; the other nine ranks agree to the last digit",
}

# Among them, the explanations that say only that a row was counted differently from the others of its table.
EXPLAINED = {
    ("goft-icml2024", "table1", "adalora"),
    ("goft-icml2024", "table3", "fact_tt_r16"),
    ("goft-icml2024", "table3", "fact_tk_r32"),
    ("goft-icml2024", "table2", "adalora"),
    ("psoft-iclr2026", "table3", "full"),
}


def agrees(count: int, printed: str, total: int) -> bool:
    """Return True if a count rounds to the printed one: 0.33M, 184M, 3.21B, 0.25% of all parameters, or the exact number.

    A unit of the last printed digit is allowed, since papers round up, down and to the nearest.

    Raises:
        ValueError: another form.
    """
    if printed.isdigit():
        return count == int(printed)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMB%])", printed)
    if not match:
        raise ValueError(f"{printed!r} is not a printed count; expected a form such as 0.33M, 184M, 3.21B, 0.25% and 331776")
    number, unit = Decimal(match[1]), match[2]
    last = Decimal(1).scaleb(number.as_tuple().exponent)  # type: ignore[arg-type]
    ours = Decimal(count) / (Decimal(total) / 100 if unit == "%" else UNITS[unit])
    return abs(ours - number) < last
