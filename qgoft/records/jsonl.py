"""JSON Lines files that grow during a run and are reused by the next attempt."""

import json
import math
from pathlib import Path
from typing import Any


class TaggedLines:
    """JSON Lines file with a first line, the tag, that identifies its inputs.

    A file with another tag is overwritten. A last line truncated by a kill is dropped.
    """

    def __init__(self, path: Path, tag: dict[str, Any]):
        self.path = path
        if read_tagged(path, tag) is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(tag) + "\n")
        elif not path.read_bytes().endswith(b"\n"):
            path.write_bytes(path.read_bytes().rpartition(b"\n")[0] + b"\n")

    def append(self, lines: list[dict[str, Any]]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def read_tagged(path: Path, tag: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the lines after the tag, up to the first incomplete one; None if the file is missing or has another tag."""
    if not path.is_file():
        return None
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):  # truncated, wrong encoding, or unbalanced brackets
            break
    return found[1:] if found and found[0] == tag else None


def read_history(directory: Path) -> list[dict[str, Any]]:
    """Return the lines of history.jsonl up to the first incomplete one."""
    lines: list[dict[str, Any]] = []
    try:
        for text in (directory / "history.jsonl").read_bytes().splitlines():
            line = json.loads(text)
            lines.append({**line, "step": int(line["step"])})
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return lines
    return lines


def read_curve(directory: Path, name: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of history.jsonl up to the first incomplete line."""
    points = ((line["step"], line.get(name)) for line in read_history(directory))
    return [(step, float(value)) for step, value in points if isinstance(value, float | int) and math.isfinite(value)]
