"""Run the authors' code next to ours, from checkouts that you name, and print the agreement.

    python scripts/fidelity.py --peft-givens DIR --metamath DIR ...

Functions and classes are taken from the checkouts by name, without their imports, and run on random weights. docs/fidelity.md lists the
repositories, the commits and the results. This repository contains none of their code.
"""

import argparse
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import qgoft  # noqa: F401  (registers the tuners)
from qgoft.cli import Parser
from qgoft.errors import QgoftError
from qgoft.fidelity import operators, scoring
from qgoft.fidelity.checkout import Finding, find_file
from qgoft.report.table import Table, terminal_width

# Option -> variable of make, repository, and the check.
CHECKS: dict[str, tuple[str, Callable[[Path], Iterator[Finding]]]] = {
    "peft-givens": ("ArthurLeoM/peft-givens", lambda directory: operators.check_givens(directory, "first")),
    "peft-givens-v2": ("ArthurLeoM/peft-givens", lambda directory: operators.check_givens(directory, "second")),
    "petl-vit": ("JieShibo/PETL-ViT", operators.check_fact),
    "adalora": ("QingruZhang/AdaLoRA", operators.check_adapters),
    "lora-xs": ("MohammadrezaBanaei/LoRA-XS", operators.check_lora_xs),
    "svft": ("VijayLingam95/SVFT", operators.check_svft),
    "psoft": ("fei407/PSOFT", operators.check_psoft),
    "metamath": ("meta-math/MetaMath", scoring.check_metamath),
    "hendrycks-math": (
        "hendrycks/math",
        lambda directory: scoring.check_equivalence(find_file(directory, "math_equivalence.py"), "hendrycks"),
    ),
    "llm-adapters": ("AGI-Edgerunners/LLM-Adapters", scoring.check_llm_adapters),
}


def commit_of(directory: Path) -> str:
    done = subprocess.run(["git", "-C", str(directory), "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "not a checkout"


def main(argv: list[str]) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, (repository, _) in CHECKS.items():
        parser.add_argument(f"--{option}", type=Path, metavar="DIR", help=f"checkout of {repository}")
    parser.add_argument("--data", type=Path, metavar="DIR", help="benchmark data (docs/data.md): more pairs of results for MATH's rules")
    given = {name.replace("_", "-"): directory for name, directory in vars(parser.parse_args(argv)).items() if directory}
    if data := given.pop("data", None):
        scoring.DATA_PAIRS.extend(scoring.data_pairs(data))
    if not given:
        variables = ", ".join(f"{option.upper().replace('-', '_')}=" for option in CHECKS)
        raise QgoftError(f"no checkout is named; set one or more of {variables} (docs/fidelity.md lists the commits)")
    torch.manual_seed(0)
    rows, is_same = [], True
    for option, directory in given.items():
        if not directory.is_dir():
            raise QgoftError(f"--{option} {directory}: not a directory; name a checkout of {CHECKS[option][0]}")
        for finding in CHECKS[option][1](directory):
            rows.append([CHECKS[option][0].partition("/")[2], commit_of(directory), *finding[:2], "yes" if finding.is_same else "NO"])
            is_same &= finding.is_same
    print(
        Table("fidelity", "Agreement with the authors' code", ["repository", "commit", "compared", "difference", "agrees"], rows).terminal(
            terminal_width()
        )
    )
    return 0 if is_same else 1
