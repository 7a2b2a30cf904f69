"""Print the pinned torch requirement of pyproject.toml, for installing it from another wheel index first."""

import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
print(next(item for item in project["dependencies"] if item.startswith("torch==")))
