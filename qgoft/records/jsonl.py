"""JSON lines that grow while a run goes on and are taken up by the next one."""

import json
import math
from pathlib import Path
from typing import Any


class TaggedLines:
    """A file of JSON lines behind a first line, the tag, that says what they belong to.

    Of another tag nothing is taken over: the file begins anew. A last line that a kill cut short is dropped.
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
    """The lines behind the tag, up to the first that is not whole; None where the file is missing or of another tag."""
    if not path.is_file():
        return None
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):  # torn, of another encoding, or brackets without end
            break
    return found[1:] if found and found[0] == tag else None


def read_curve(folder: Path | None, name: str) -> list[tuple[int, float]]:
    """(step, value) of history.jsonl, as far as it is whole."""
    points: list[tuple[int, float]] = []
    try:
        text = (folder / "history.jsonl").read_bytes() if folder is not None else b""
        for line in text.splitlines():
            entry = json.loads(line)
            if isinstance(entry.get(name), float | int) and math.isfinite(entry[name]):
                points.append((int(entry["step"]), float(entry[name])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return points
    return points
