"""Composed settings on disk. Composing takes a quarter of a second, and the tables of both papers have 1500 combinations of overrides.

One file is in the user's cache, another one with the committed records and in the wheel. Both state the version of the
configuration files that they were composed from, and are ignored under another version.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qgoft.config import locations
from qgoft.config.settings import RunSettings, settings_from_dict
from qgoft.records import write_atomically

Overrides = tuple[str, ...]
COMMITTED = locations.SETTINGS
# The cache is cleared beyond this number of settings.
LIMIT = 20_000
_used: dict[str, Any] = {}


def cached_settings(asked: Sequence[Overrides]) -> dict[Overrides, RunSettings]:
    """Return the settings of those overrides that were composed before."""
    stored = _stored(_user_file())
    found = {overrides: stored[_name(overrides)] for overrides in asked if _name(overrides) in stored}
    _used.update({_name(overrides): settings for overrides, settings in found.items()})
    return {overrides: settings_from_dict(settings) for overrides, settings in found.items()}


def store_settings(composed: Mapping[Overrides, RunSettings]) -> None:
    """Add settings to the user's cache. Without a writable cache they are composed again next time."""
    new = {_name(overrides): dataclasses.asdict(settings) for overrides, settings in composed.items()}
    _used.update(new)
    path = _user_file()
    _stored(path).update(new)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            if old != path:
                old.unlink(missing_ok=True)
        kept = _read(path)
        write_atomically(path, json.dumps((kept if len(kept) < LIMIT else {}) | new))
    except OSError:
        return


def commit_settings() -> Path:
    """Write all settings that this process has used to the directory of the committed records. Return the path."""
    content = {"version": configs_version(), "settings": dict(sorted(_used.items()))}
    COMMITTED.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0))
    return COMMITTED


@functools.cache
def configs_version() -> str:
    """Return a version that changes with everything that composition depends on."""
    digest = hashlib.sha256()
    for root, pattern in ((locations.CONFIGS, "*.yaml"), (Path(locations.__file__).parent, "*.py")):
        for path in sorted(set(root.rglob(pattern)) - {Path(locations.__file__)}):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def _committed() -> dict[str, Any]:
    try:
        content = json.loads(gzip.decompress(COMMITTED.read_bytes()))
    except (OSError, ValueError, EOFError):
        return {}
    return content["settings"] if isinstance(content, dict) and content.get("version") == configs_version() else {}


@functools.cache
def _stored(path: Path) -> dict[str, Any]:
    """Return the committed settings and those of a file, read once per process."""
    return _committed() | _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        cache = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return cache if isinstance(cache, dict) else {}


def _user_file() -> Path:
    return locations.cache_directory() / "settings" / f"{configs_version()}.json"


def _name(overrides: Overrides) -> str:
    return "\n".join(overrides)
