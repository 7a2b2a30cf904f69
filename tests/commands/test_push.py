"""Upload of an adapter to a hub on the loopback interface."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qgoft.commands import push
from qgoft.errors import QgoftError
from qgoft.records import file_checksums, write_record
from tests.committed import select, write_run


@pytest.fixture
def run(tmp_path):
    record = next(r for r in select("rte", method="qgoft", seed=0) if r["model"] == "pocket-deberta")
    directory = write_run(record, tmp_path / "runs" / record["key"])
    (directory / "adapter").mkdir()
    (directory / "adapter" / "adapter_config.json").write_text("{}")
    (directory / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    return directory


@pytest.fixture
def hub(monkeypatch):
    """Serve the calls of an upload; return the uploaded files."""
    uploaded, refused = {}, []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, content, code=200):
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"id": "org/adapter", "sha": "0" * 40, "siblings": []})

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if refused:
                self.answer({"error": f"refused for {self.headers['Authorization']}"}, 403)
            elif self.path.endswith("/repos/create"):
                self.answer({"url": f"{endpoint}/org/adapter"})
            elif "/preupload/" in self.path:
                files = json.loads(body)["files"]
                self.answer({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                uploaded.update(
                    {line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"}
                )
                self.answer({"commitUrl": f"{endpoint}/org/adapter/commit/1", "commitOid": "1", "success": True})
            else:
                self.answer({"errors": [], "warnings": []})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    for module in ("huggingface_hub.constants", "huggingface_hub.hf_api"):
        monkeypatch.setattr(f"{module}.ENDPOINT", endpoint, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield uploaded, refused
    server.shutdown()
    server.server_close()


def test_push_uploads_adapter_and_card(run, hub, capsys):
    uploaded, _ = hub
    assert push.main([str(run), "org/adapter"]) == 0
    assert "/commit/1" in capsys.readouterr().out
    assert set(uploaded) == {"adapter_config.json", "adapter_model.safetensors", "README.md", "record.json"}
    assert uploaded["adapter_model.safetensors"] == b"weights"
    card = uploaded["README.md"].decode()
    record = json.loads(uploaded["record.json"])
    assert f"| accuracy | {record['metrics']['accuracy']['value']:.2f} ±" in card
    assert record["key"] in card
    assert "python scripts/train.py protocol=pocket task=glue/rte method=qgoft" in card
    assert card.startswith("---\n")
    assert "library_name: peft" in card


def test_push_refused(run, hub):
    _, refused = hub
    refused.append(True)
    with pytest.raises(QgoftError, match=r"upload to org/adapter failed .*HF_TOKEN") as raised:
        push.main([str(run), "org/adapter"])
    assert "hf_secret" not in str(raised.value)


def test_push_needs_an_adapter(run, tmp_path):
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(QgoftError, match=r"adapter/adapter_model.safetensors is missing"):
        push.main([str(run), "org/adapter"])
    with pytest.raises(QgoftError, match=r"no record.json; expected the directory of a finished run"):
        push.main([str(tmp_path), "org/adapter"])
    record = {**json.loads((run / "record.json").read_text()), "status": "failed", "reason": "disk full", "files": file_checksums(run)}
    record.pop("checksum")
    write_record(run, record)
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    with pytest.raises(QgoftError, match="its status is failed"):
        push.main([str(run), "org/adapter"])
