"""The server of the web page: the page, the videos, the state of the server and its counters."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import gradio as gr  # pyright: ignore[reportMissingImports]
import uvicorn  # pyright: ignore[reportMissingImports]
from fastapi import FastAPI, Request, Response  # pyright: ignore[reportMissingImports]
from fastapi.responses import (  # pyright: ignore[reportMissingImports]
    FileResponse,
    JSONResponse,
    StreamingResponse,
)

from emo_jax.app.jobs import Job, Studio
from emo_jax.app.owners import Owners, OwnFiles, user_of
from emo_jax.app.page import CSS, Page
from emo_jax.app.settings import PICTURES, SOUNDS, Library, Settings

_READ = 2**18
"""Bytes of a growing file that are sent at once."""
_WAIT = 0.1
"""Seconds between looks at a growing file."""


class Server:
    """A web page that is ready to serve.

    Args:
        settings: what it offers and allows.
        load: returns the pipelines, one for each device.
        devices: number of jobs that run at a time.

    Attributes:
        studio: makes the videos.
        app: the ASGI application.

    Raises:
        ValueError: the address cannot be used.
    """

    def __init__(self, settings: Settings, load: Callable[[], list[Any]], devices: int = 1):
        self.settings = settings
        self._listener = _listen(settings.host, settings.port)  # before anything that would have to be removed
        root = Path(tempfile.mkdtemp(prefix="emo-app-"))
        os.environ["GRADIO_TEMP_DIR"] = str(root / "uploads")  # Gradio has no other setting for it
        os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
        self.studio = Studio(settings, root, load)
        try:
            self.app = _make_app(self.studio, devices)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Frees the address, and deletes the files of users."""
        self._listener.close()
        self.studio.close()

    def run(self, ready: Callable[[str], None]) -> None:
        """Serves until the process is interrupted or terminated, and deletes the files of users.

        Args:
            ready: called with the address when the page can be opened.
        """
        config = uvicorn.Config(self.app, log_level="warning", timeout_graceful_shutdown=3)
        self._uvicorn = uvicorn.Server(config)
        ready(f"http://{self.settings.host}:{self._listener.getsockname()[1]}")
        try:
            self._uvicorn.run(sockets=[self._listener])
        finally:
            self.close()

    def stop(self) -> None:
        """Makes `run` return, from another thread."""
        self._uvicorn.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on an address.

    Raises:
        ValueError: the address cannot be used.
    """
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be used ({error.strerror}); choose another --port") from error


def serve(settings: Settings, devices: int | None = None) -> None:
    """Runs the web page with an `EmoPipeline` on each device of this process.

    Args:
        settings: what it offers and allows.
        devices: use at most this many devices; None for all.

    Raises:
        ValueError: a setting cannot be used.
    """
    import jax

    from emo_jax.distributed.processes import check_devices
    from emo_jax.generation.pipeline import EmoPipeline

    check_devices()
    used = jax.local_devices()[:devices]

    def load() -> list[Any]:
        pipe = EmoPipeline.from_pretrained(settings.weights)
        return [pipe] if len(used) == 1 else [pipe.on([device]) for device in used]

    def ready(address: str) -> None:
        print(f"emo app: open {address}", file=sys.stderr, flush=True)

    Server(settings, load, len(used)).run(ready)


def _make_app(studio: Studio, devices: int) -> Any:
    settings, owners = studio.settings, Owners()
    # Before the page is made: otherwise Gradio serves copies of the libraries, which are deleted as files of users are.
    gr.set_static_paths([Library(settings.portraits, PICTURES).folder, Library(settings.songs, SOUNDS).folder])
    page = Page(studio, owners, devices)
    # Gradio checks the paths that clients send only after launch(), which a mounted page never calls.
    page.blocks.has_launched = True
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    def healthz() -> Response:
        status = studio.status
        return JSONResponse({"status": status}, 500 if status == "failed" else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(studio.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/videos/{token}/{name}")
    def video(token: str, name: str, request: Request) -> Response:
        job = studio.jobs.get(token)
        if job is None or job.owner not in ("", user_of(request.cookies)):
            return Response(status_code=404)
        if name == "video.mp4" and job.complete:
            return FileResponse(job.video, media_type="video/mp4")
        if name == "live.mp4" and job.growing is not None:
            return StreamingResponse(_grow(job), media_type="video/mp4", headers={"Cache-Control": "no-store"})
        return Response(status_code=404)

    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        auth=list(settings.auth) or None,
        max_file_size=int(settings.max_megabytes * 1e6),
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        i18n=page.i18n,
        css=CSS,
    )
    return OwnFiles(app, owners)


async def _grow(job: Job) -> AsyncIterator[bytes]:
    """Yields a file while it is written, up to its end."""
    assert job.growing is not None
    try:
        file = await anyio.open_file(job.growing, "rb")
    except FileNotFoundError:  # complete and moved to its final name
        return
    async with file:
        while True:
            over = job.finished.is_set()  # Checked before the read, so that the last bytes are not missed.
            data = await file.read(_READ)
            if data:
                yield data
            elif over:
                return
            else:
                await anyio.sleep(_WAIT)
