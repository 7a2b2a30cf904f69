"""Functions and classes of a checkout, loaded by name, and the findings of a comparison."""

import ast
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from qgoft.errors import QgoftError


class Finding(NamedTuple):
    """One comparison: its subject, and the largest relative difference or the number of verdicts that differ."""

    subject: str
    difference: str
    is_same: bool


def names_from(path: Path, names: list[str], **namespace: Any) -> SimpleNamespace:
    """Execute only the named functions and classes of a file, in a namespace that replaces its imports.

    Raises:
        QgoftError: the file is missing or lacks one of the names.
    """
    try:
        tree = ast.parse(path.read_text())
    except OSError as error:
        raise QgoftError(f"{path} cannot be read ({error}); name a checkout at the commit of docs/fidelity.md") from error
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names]
    missing = set(names) - {node.name for node in found}
    if missing:
        raise QgoftError(f"{path} has no {', '.join(sorted(missing))}; name a checkout at the commit of docs/fidelity.md")
    space: dict[str, Any] = {"torch": torch, "nn": nn, "F": nn.functional, "math": math, "np": np, "re": re, **namespace}
    exec(compile(ast.Module(found, []), str(path), "exec"), space)  # code that the user asked to run
    return SimpleNamespace(**{name: space[name] for name in names}, space=space)


def compare(subject: str, ours: Tensor, theirs: Tensor, bound: float = 1e-5) -> Finding:
    gap = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    return Finding(subject, f"{gap:.1e}", gap <= bound)


def verdicts(subject: str, pairs: list[tuple[Any, Any]]) -> Finding:
    """Return the finding of pairs of verdicts, this project's and theirs."""
    differing = sum(ours != theirs for ours, theirs in pairs)
    return Finding(subject, f"{differing} of {len(pairs):,} differ", differing == 0)


def find_file(directory: Path, name: str) -> Path:
    """Return the path of a file below a directory.

    Raises:
        QgoftError: the directory has no such file.
    """
    found = sorted(directory.rglob(name))
    if not found:
        raise QgoftError(f"{directory} has no {name}; name a checkout at the commit of docs/fidelity.md")
    return found[0]
