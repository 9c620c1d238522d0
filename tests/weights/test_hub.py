"""The necessary files of a hub id are downloaded once, from a local server that replaces the hub."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub for one model."""

    def do_GET(self):
        """A model's description, the list of its files, or a file."""
        path = self.path.split("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        files, commit = self.server.files, "0" * 40
        if path == "/api/models/owner/sd/revision/main":
            self.answer(json.dumps({"id": "owner/sd", "sha": commit, "siblings": [{"rfilename": n} for n in files]}))
        elif path.startswith("/api/models/owner/sd/tree/"):
            self.answer(json.dumps([dict(type="file", path=n, oid=n, size=len(t)) for n, t in files.items()]))
        elif path.removeprefix(f"/owner/sd/resolve/{commit}/") in files:
            name = path.removeprefix(f"/owner/sd/resolve/{commit}/")
            self.answer(files[name], **{"ETag": f'"{name}"', "X-Repo-Commit": commit})
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def answer(self, text, **headers):
        """Sends text and its headers; only the headers for HEAD."""
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(text))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(text.encode())

    def log_message(self, *args):
        """Prints nothing."""


@pytest.fixture
def hub():
    """A server with three necessary files, other copies of the weights, and files that are not weights."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    names = ["unet/config.json", "unet/preprocessor_config.json", "unet/model.onnx", "README.md"]
    endings = ("safetensors", "fp16.safetensors", "non_ema.safetensors", "bin")
    names += [f"unet/diffusion_pytorch_model.{ending}" for ending in endings]
    server.asked, server.files = [], {name: f"content of {name}" for name in names}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def locate(hub, home, offline="0"):
    """Returns the files that `locate` finds for the hub id, or its error.

    Runs in another process, because huggingface_hub reads the address of the hub when it is imported.
    """
    code = (
        "import pathlib; from emo_jax.weights.hub import locate; p = locate('owner/sd', ['unet'])\n"
        "print(*sorted(f.relative_to(p).as_posix() for f in p.rglob('*') if f.is_file()))"
    )
    settings = dict(HF_ENDPOINT=f"http://127.0.0.1:{hub.server_port}", HF_HOME=str(home), HF_HUB_OFFLINE=offline)
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | settings, capture_output=True, text=True)
    return done.stdout.split() or done.stderr.strip().splitlines()[-1]


def test_hub_files_are_downloaded_once(hub, tmp_path):
    wanted = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "unet/preprocessor_config.json"]
    assert locate(hub, tmp_path / "home") == wanted
    fetched = [line.rsplit("/", 2)[1:] for line in hub.asked if line.startswith("GET /owner")]
    assert sorted("/".join(parts) for parts in fetched) == wanted
    hub.asked.clear()
    assert locate(hub, tmp_path / "home", offline="1") == wanted and not hub.asked
    message = locate(hub, tmp_path / "empty", offline="1")
    assert message.startswith("ValueError: owner/sd ")
