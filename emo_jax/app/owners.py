"""Which user sent which file: a cookie distinguishes users, who read only what they sent or made."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

COOKIE = "emo_user"
"""Name of the cookie; its value is a random key that is stored nowhere else."""


def user_of(cookies: Mapping[str, str]) -> str:
    """Returns the key of a user, or "" for clients that keep no cookies."""
    return cookies.get(COOKIE, "")


class Owners:
    """The owners of uploaded files. A file without owner is found only by who knows its name, which is a hash."""

    def __init__(self):
        self._owners: dict[str, set[str]] = {}

    def add(self, path: str, user: str) -> None:
        """Notes that a user sent a file."""
        if user:
            self._owners.setdefault(os.path.realpath(path), set()).add(user)

    def may_read(self, path: str, user: str) -> bool:
        """Returns whether the user sent the file, or nobody with a cookie did."""
        owners = self._owners.get(os.path.realpath(path))
        return owners is None or user in owners


class OwnFiles:
    """ASGI middleware: gives each browser a cookie, notes who uploads a file, and shows files to these users alone.

    Args:
        app: the application behind it.
        owners: the owners of files.
    """

    def __init__(self, app: Any, owners: Owners):
        self._app, self._owners = app, owners

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        user, path = _user(scope), unquote(scope["path"])
        file = re.search(r"/file[=/](.*)", path, re.DOTALL)
        if file and (_is_url(file[1]) or not self._owners.may_read(file[1], user)):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b""})
            return
        uploads = scope["method"] == "POST" and path.endswith("/upload")
        new = "" if user else secrets.token_urlsafe(24)

        async def watched(message: Any) -> None:
            if message["type"] == "http.response.start" and new and path == "/":
                cookie = f"{COOKIE}={new}; Path=/; HttpOnly; SameSite=Lax; Max-Age=31536000"
                message["headers"] = [*message.get("headers", []), (b"set-cookie", cookie.encode())]
            if uploads and message["type"] == "http.response.body":
                for sent in _paths(message.get("body", b"")):
                    self._owners.add(sent, user)
            await send(message)

        await self._app(scope, receive, watched)


def _user(scope: Any) -> str:
    # SimpleCookie would drop all cookies if one is malformed.
    from starlette.requests import cookie_parser  # pyright: ignore[reportMissingImports]

    header = b"; ".join(value for name, value in scope["headers"] if name == b"cookie")
    return cookie_parser(header.decode("latin-1")).get(COOKIE, "")


def _is_url(name: str) -> bool:
    """Returns whether Gradio would fetch this file for the client, as a proxy."""
    return name.lstrip("/").lower().startswith(("http:", "https:"))


def _paths(body: bytes) -> list[str]:
    """Returns the paths in the answer to an upload, a JSON list."""
    try:
        answer = json.loads(body)
    except ValueError:
        return []
    return [item for item in answer if isinstance(item, str)] if isinstance(answer, list) else []
