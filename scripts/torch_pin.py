"""Print requirements of pyproject.toml: the pinned torch, to install it from another wheel index first, or with --oldest the oldest versions
that the adapter allows.
"""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
if "--oldest" in sys.argv:
    print(*(item.replace(">=", "==") for item in project["dependencies"]))
else:
    print(next(item for item in project["optional-dependencies"]["suite"] if item.startswith("torch==")))
