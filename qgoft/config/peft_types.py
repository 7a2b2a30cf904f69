"""Tuner types of the installed peft, read from its source so that planning does not import torch.

A type without a file in configs/method is a method under its lower-case name (`METHOD=vera`): configs/method/_peft.yaml and
configs/recipe/<protocol>/_peft.yaml describe all of them.
"""

import ast
import functools
import importlib.util
from pathlib import Path

# Name of the files of methods that have none of their own.
SHARED = "_peft"


@functools.cache
def peft_types() -> tuple[str, ...]:
    """Return the lower-case names of all tuner types; empty without peft."""
    found = importlib.util.find_spec("peft")
    source = Path(found.origin).parent / "utils" / "peft_types.py" if found is not None and found.origin else None
    if source is None or not source.is_file():
        return ()
    classes = (node for node in ast.parse(source.read_text()).body if isinstance(node, ast.ClassDef) and node.name == "PeftType")
    targets = (target for found in classes for line in found.body if isinstance(line, ast.Assign) for target in line.targets)
    return tuple(sorted(target.id.lower() for target in targets if isinstance(target, ast.Name)))
