"""Model files: finding, downloading and listing them. The server of the tests is on this machine."""

import dataclasses
import hashlib
import http.server
import threading

import pytest

from emo_jax.cli import main as cli
from emo_jax.faces import models

CONTENT = bytes(range(256)) * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /good, damaged content at /bad, and breaks the connection at /cut."""

    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        content = {"/good": CONTENT, "/bad": b"\1" * len(CONTENT), "/cut": CONTENT[:1000]}[self.path]
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def address():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def model(address, **changes):
    digest = hashlib.sha256(CONTENT).hexdigest()
    known = models.Model("toy", "toy.onnx", address, digest, len(CONTENT), "MIT", "nothing")
    return dataclasses.replace(known, **changes)


def test_table_is_complete():
    names = [model.name for model in models.MODELS]
    assert names == ["yunet", "face_landmarker", "sface"]
    for entry in models.MODELS:
        assert entry.address.startswith("https://") and entry.address.endswith(entry.file)
        assert len(bytes.fromhex(entry.sha256)) == 32 and entry.size > 100_000
        assert entry.licence in ("MIT", "Apache-2.0")


def test_download_is_complete_counted_and_not_repeated(tmp_path, address):
    counts = []
    path = models.download(model(f"{address}/good"), tmp_path / "new", counts.append)
    assert path == tmp_path / "new" / "toy.onnx" and path.read_bytes() == CONTENT
    assert sum(counts) == len(CONTENT) and len(counts) > 1
    again = models.download(model("http://127.0.0.1:1/none"), tmp_path / "new", counts.append)  # no connection is made
    assert again == path and sum(counts) == 2 * len(CONTENT)


@pytest.mark.parametrize("place", ["bad", "cut", "missing"])
def test_failed_download_leaves_nothing(tmp_path, address, place):
    with pytest.raises(ValueError, match=f"{address}/{place}"):
        models.download(model(f"{address}/{place}"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_address_that_cannot_be_reached(tmp_path):
    with pytest.raises(ValueError, match="copy the file"):
        models.download(model("http://127.0.0.1:1/none"), tmp_path)


def test_damaged_file_is_replaced(tmp_path, address):
    (tmp_path / "toy.onnx").write_bytes(b"\0" * len(CONTENT))
    assert models.download(model(f"{address}/good"), tmp_path).read_bytes() == CONTENT


def test_finding_models(tmp_path, monkeypatch):
    monkeypatch.setenv("EMO_FACE_MODELS", str(tmp_path))
    assert models.default_folder() == tmp_path and not models.has_models("yunet")
    path = tmp_path / models.MODELS[0].file
    path.write_bytes(b"\0")
    with pytest.raises(ValueError, match="unexpected size"):
        models.model_path("yunet")
    path.write_bytes(b"\0" * models.MODELS[0].size)
    assert models.model_path("yunet") == path and models.has_models("yunet")
    with pytest.raises(ValueError, match="is missing.*emo models download"):
        models.model_path("sface")
    monkeypatch.delenv("EMO_FACE_MODELS")
    monkeypatch.setenv("EMO_CACHE", str(tmp_path / "cache"))
    assert models.default_folder() == tmp_path / "cache" / "models"


def test_command_lists_and_downloads(tmp_path, address, monkeypatch, capsys):
    monkeypatch.setattr(models, "MODELS", (model(f"{address}/good"),))
    assert cli.main(["models", "list", "--folder", str(tmp_path)]) == 0
    assert "missing" in capsys.readouterr().out
    assert cli.main(["models", "download", "--folder", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}/toy.onnx (MIT)\n"
    cli.main(["models", "list", "--folder", str(tmp_path)])
    assert "present" in capsys.readouterr().out
    (tmp_path / "toy.onnx").write_bytes(b"\0" * len(CONTENT))
    cli.main(["models", "list", "--folder", str(tmp_path)])
    assert "damaged" in capsys.readouterr().out
    monkeypatch.setattr(models, "MODELS", (model(f"{address}/bad"),))
    assert cli.main(["models", "download", "--folder", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1:]) == 1
