"""Pinned public files: from a directory, from the cache, or downloaded and checked, over the loopback interface."""

import dataclasses
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qgoft.errors import QgoftError
from qgoft.tasks import pinned_files as pinned
from qgoft.tasks.pinned_files import PINNED, pinned_file

CONTENT = b'{"prompt_input": "..."}'


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A server with a list of status codes; 200 sends the content, which is pinned here."""
    script, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            status = script.pop(0) if script else 200
            self.send_response(200 if status == "other" else status)
            self.end_headers()
            if status in (200, "other"):
                self.wfile.write(CONTENT if status == 200 else b"something else")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("QGOFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pinned, "PAUSE", 0.0)
    here = dataclasses.replace(
        PINNED["alpaca_template"], url=f"http://127.0.0.1:{server.server_port}/alpaca.json", sha256=hashlib.sha256(CONTENT).hexdigest()
    )
    monkeypatch.setitem(PINNED, "alpaca_template", here)
    yield script, asked
    server.shutdown()
    server.server_close()


def test_pinned_file_is_downloaded_once(source):
    _, asked = source
    path = pinned_file("alpaca_template", None)
    assert path.read_bytes() == CONTENT
    assert pinned_file("alpaca_template", None) == path
    assert len(asked) == 1
    path.write_bytes(b"damaged")
    assert pinned_file("alpaca_template", None).read_bytes() == CONTENT
    assert len(asked) == 2


def test_pinned_file_retries_a_busy_source(source):
    script, asked = source
    script += [503, 429]
    assert pinned_file("alpaca_template", None).read_bytes() == CONTENT
    assert len(asked) == 3


@pytest.mark.parametrize(("answers", "message"), [(["other"], "checksum"), ([404], "404"), ([500] * 4, "500")])
def test_pinned_file_unavailable(source, answers, message):
    source[0].extend(answers)
    with pytest.raises(QgoftError, match=message) as caught:
        pinned_file("alpaca_template", None)
    assert "prompts/alpaca.json" in str(caught.value)


def test_pinned_file_from_a_directory(source, tmp_path):
    directory = tmp_path / "root" / "prompts"
    directory.mkdir(parents=True)
    (directory / "alpaca.json").write_bytes(b"own")
    assert pinned_file("alpaca_template", str(tmp_path / "root")).read_bytes() == b"own"
    assert source[1] == []


def test_pinned_checksums_match_real_files(shared):
    for name in ("vicuna_questions", "vicuna_references", "judge_prompts"):
        path = pinned_file(name, str(shared / "data"))
        assert hashlib.sha256(path.read_bytes()).hexdigest() == PINNED[name].sha256
