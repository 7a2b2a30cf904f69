"""Public files fetched from a fixed commit and verified by checksum: questions, reference answers and prompts.

They are third-party data and not shipped. A directory below data.root may provide them with the same or other content, which the
record's fingerprint states.
"""

import hashlib
import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from qgoft.config.locations import cache_directory
from qgoft.errors import QgoftError
from qgoft.records.store import atomic_file

FASTCHAT = "https://raw.githubusercontent.com/lm-sys/FastChat/0e6d3e4beaab66f4d3f93db72541a4abab8af28d/fastchat/llm_judge/data"
ALPACA_LORA = "https://raw.githubusercontent.com/tloen/alpaca-lora/8bb8579e403dc78e37fe81ffbb253c413007323f/templates"
TRIES, PAUSE, TIMEOUT = 4, 1.0, 30.0


@dataclass(frozen=True)
class Pinned:
    """URL, SHA-256 and size in bytes of a file, and its path below data.root."""

    url: str
    sha256: str
    size: int
    place: str


PINNED = {
    "alpaca_template": Pinned(
        f"{ALPACA_LORA}/alpaca.json", "0ee8b4f807e99e4d5ed4248abebdee4bbe29395fb7485a3650c3a8905d8d4aae", 542, "prompts/alpaca.json"
    ),
    "vicuna_questions": Pinned(
        f"{FASTCHAT}/vicuna_bench/question.jsonl",
        "c248c5c98ba45bb0c2aadae2f270e643bd32679c6c306a3b2a503ac4254cdaa5",
        13125,
        "vicuna/question.jsonl",
    ),
    "vicuna_references": Pinned(
        f"{FASTCHAT}/vicuna_bench/reference_answer/gpt-4.jsonl",
        "f7542dc25a5a869b32197486f5699a14eb5682ab3c7264518402399ec09ab470",
        11301,
        "vicuna/reference_answer/gpt-4.jsonl",
    ),
    "judge_prompts": Pinned(
        f"{FASTCHAT}/judge_prompts.jsonl",
        "fd283293406d024f44c174b094ef48031d0687a4682fd3a56b29b138f80281b6",
        10449,
        "vicuna/judge_prompts.jsonl",
    ),
}


def pinned_file(name: str, root: str | None) -> Path:
    """Return the file from below `root` if it exists, otherwise from the cache, otherwise download it.

    Raises:
        QgoftError: it cannot be downloaded, or its checksum differs.
    """
    pinned = PINNED[name]
    if root is not None and (Path(root) / pinned.place).is_file():
        return Path(root) / pinned.place
    path = cache_directory() / "pinned" / pinned.sha256 / Path(pinned.place).name
    if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == pinned.sha256:
        return path
    content = _fetch(pinned)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as part:
            part.write_bytes(content)
    except OSError as error:
        raise QgoftError(f"cannot write {path}: {error.strerror}; set QGOFT_CACHE to a directory with free space") from error
    return path


def _fetch(pinned: Pinned) -> bytes:
    place = f"or put the file at <data.root>/{pinned.place} and set data.root"
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(pinned.url, timeout=TIMEOUT) as response:
                content: bytes = response.read()
            break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            is_final = isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code != 429
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            if left == 0 or is_final:
                raise QgoftError(f"{pinned.url} cannot be downloaded ({error}); try again with a network connection, {place}") from error
            time.sleep(PAUSE)
    found = hashlib.sha256(content).hexdigest()
    if found != pinned.sha256:
        raise QgoftError(f"{pinned.url} has checksum {found[:12]}, not {pinned.sha256[:12]}; the download is corrupt: try again, {place}")
    return content
