"""Scoring rules of the authors' code, compared on generated and real results."""

import contextlib
import gzip
import io
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from datasets import Dataset

from qgoft.errors import QgoftError
from qgoft.fidelity.checkout import Finding, names_from, verdicts
from qgoft.tasks.decoder import answer_parsing as answers
from qgoft.tasks.decoder import published_rules

ATOMS = (
    r"1|2|0.5|.5|x|\frac12|\frac{1}{2}|\dfrac{1}{2}|\tfrac1{2}|\sqrt3|\sqrt{3}|\sqrt[3]{2}|k=3|x = 3|xy=3|\text{ cm}|5\text{ cm}|5\text{cm}|"
    r"\text{ a}\text{ b}|50\%|50%|$5|\$5|1/2|x/2|01/2|-1/2|\pi/4|1,000|1000|10^\circ|10^{\circ}|\left(1,2\right)|(1,2)|"
    r"\begin{pmatrix}1\\2\end{pmatrix}|\frac|\frac1|\sqrt|a=b=c|1.0|01|3/1|3|$3$|3.|\text{even}|even|\frac{72}1|\frac 12| 3|2\!3|1 / 2|{.5}|a .5|-.5"
).split("|")


def formula_pairs(count: int = 20_000) -> list[tuple[str, str]]:
    """Return every pair of the atoms, and pairs of texts made of them, of which one is often a respelling of the other."""
    rng = np.random.default_rng(0)
    pairs = [(one, other) for one in ATOMS for other in ATOMS]
    while len(pairs) < count:
        one = "".join(rng.choice(ATOMS, rng.integers(1, 4)))
        spelled = [one, one.replace(" ", ""), one.replace("dfrac", "frac"), one + str(rng.choice(ATOMS)), str(rng.choice(ATOMS))]
        pairs.append((one, spelled[rng.integers(len(spelled))]))
    return pairs


def data_pairs(directory: Path) -> list[tuple[str, str]]:
    """Return pairs of real results below a directory of benchmark data (docs/data.md): the choices of MMLU questions, and answers of word
    problems and GSM8K with the results at the end of their solutions.

    Raises:
        QgoftError: the directory has none of them.
    """
    pairs: list[tuple[str, str]] = []
    if (path := directory / "mmlu" / "test.parquet").is_file():
        for row in Dataset.from_parquet(str(path)):
            pairs += [(one, other) for one in row["choices"] for other in (*row["choices"], one.replace(" ", ""))]
    texts = []
    for path in sorted((directory / "math_word_problems").glob("*/test.jsonl.gz")):
        lines = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
        texts += [(str(row["answer"]), row["output"].rpartition("The answer is ")[2].strip()) for row in lines]
    if (path := directory / "gsm8k" / "test.parquet").is_file():
        texts += [
            (row["answer"].rpartition("#### ")[2], row["answer"].rpartition("<<")[2].partition(">>")[0])
            for row in Dataset.from_parquet(str(path))
        ]
    for answer, found in texts:
        pairs += [(answer, found), (f"${answer}$", found), (f"\\frac{{{answer}}}{{1}}", answer), (answer, answer.removesuffix(".0"))]
    if not pairs:
        raise QgoftError(f"--data {directory} has neither mmlu, math_word_problems nor gsm8k; name a directory as in docs/data.md")
    return pairs


# Further pairs, from --data.
DATA_PAIRS: list[tuple[str, str]] = []


def check_equivalence(path: Path, rule: str) -> Iterator[Finding]:
    prefix = "_" if rule == "hendrycks" else ""
    helpers = [f"{prefix}{name}" for name in ("fix_fracs", "fix_a_slash_b", "remove_right_units", "fix_sqrt", "strip_string")]
    source = names_from(path, ["is_equiv", *helpers])
    found, own = [], []
    for one, other in [*formula_pairs(), *DATA_PAIRS]:
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = bool(source.is_equiv(one, other))
        found.append((published_rules.is_equivalent(one, other, rule=rule), theirs))
        own.append((answers.same_formula(one, other), theirs))
    yield verdicts(f"{rule}: is_equiv", found)
    accepts, refuses = (sum(ours is verdict and theirs is not verdict for ours, theirs in own) for verdict in (True, False))
    yield Finding(f"{rule}: math_equivalent, this project's metric", f"accepts {accepts:,}, refuses {refuses:,} that it does not", True)


def check_metamath(directory: Path) -> Iterator[Finding]:
    yield from check_equivalence(directory / "util.py", "metamath")
    numbers = names_from(directory / "eval_gsm8k.py", ["is_number", "extract_answer_number"], Fraction=Fraction)
    rng = np.random.default_rng(0)
    pieces = [
        "-",
        "+",
        "$",
        "3",
        "18",
        "1,234",
        ".",
        ".5",
        "/",
        "0",
        " ",
        "7/2",
        "3.5",
        "%",
        "x",
        "\n",
        "The answer is: ",
        "The answer is ",
    ]
    pairs: list[tuple[Any, Any]] = []
    for _ in range(5000):
        text = "so The answer is: " * int(rng.integers(2)) + "".join(rng.choice(pieces, rng.integers(1, 6)))
        with contextlib.suppress(ZeroDivisionError):  # their code raises it
            pairs.append((published_rules.read_metamath_number(text), numbers.extract_answer_number(text)))
    yield verdicts("metamath: GSM8K's number", pairs)
    read: list[str] = []
    util = SimpleNamespace(is_equiv=lambda found, answer: read.append(found))
    formulas = names_from(directory / "eval_math.py", ["process_results", "remove_boxed"], util=util, invalid_outputs=[])
    boxes = names_from(directory / "util.py", ["last_boxed_only_string"])
    pairs, references = [], []
    for one, other in formula_pairs(5000):
        text = f"{one}The answer is: {other}.\nmore" if len(one) % 2 else f"{one}{other}"
        read.clear()
        formulas.process_results("", text, "")
        pairs.append((published_rules.read_metamath_formula(text), read[0] if read else None))
        solution = f"so \\boxed{{{one}}}, \\fbox{{2}} or \\boxed{{{other}" + "}" * (len(other) % 3)
        references.append((published_rules.read_boxed_reference(solution), formulas.remove_boxed(boxes.last_boxed_only_string(solution))))
    yield verdicts("metamath: MATH's result", pairs)
    yield verdicts("metamath: MATH's reference", references)


def check_llm_adapters(directory: Path) -> Iterator[Finding]:
    source = names_from(directory / "commonsense_evaluate.py", ["extract_answer"])
    labels = {
        "boolq": ["true", "false"], "piqa": ["solution1", "solution2"], "winogrande": ["option1", "option2"],
        "hellaswag": [f"ending{i}" for i in range(1, 5)], "social_i_qa": [f"answer{i}" for i in range(1, 4)],
        "openbookqa": [f"answer{i}" for i in range(1, 5)], "ARC-Easy": [f"answer{i}" for i in range(1, 6)],
    }  # fmt: skip
    rng = np.random.default_rng(0)
    for dataset, own in labels.items():
        pieces = [*own, *(label.upper() for label in own), "answer5", "answer10", "untrue", " ", "the correct answer is "]
        texts = ["".join(rng.choice(pieces, rng.integers(1, 5))) for _ in range(1000)]
        args = SimpleNamespace(dataset=dataset)
        found = [(published_rules.read_first_label(text, own) or "", source.extract_answer(args, text)) for text in texts]
        yield verdicts(f"LLM-Adapters: {dataset}", found)
