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


def read_curve(directory: Path | None, name: str) -> list[tuple[int, float]]:
    """Return the (step, value) pairs of history.jsonl up to the first incomplete line."""
    points: list[tuple[int, float]] = []
    try:
        text = (directory / "history.jsonl").read_bytes() if directory is not None else b""
        for line in text.splitlines():
            entry = json.loads(line)
            if isinstance(entry.get(name), float | int) and math.isfinite(entry[name]):
                points.append((int(entry["step"]), float(entry[name])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return points
    return points
