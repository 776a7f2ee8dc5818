"""
Restricts the requests that a browser may send to the app to a short list of addresses, and to pages of the app.

Gradio also serves files of other directories, fetches addresses for its clients, and has endpoints that this app does
not need. Requests that are not on the list are refused before Gradio sees them.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MAX_UPLOAD = 200 * 2**20  # maximum bytes of one file
_MAX_UPLOADS = 2**30  # maximum bytes of all uploaded files together

_GET = {
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/gradio_api/startup-events",
    "/gradio_api/queue/data",
    "/gradio_api/upload_progress",
}
_GET_BELOW = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_POST = {"/gradio_api/queue/join", "/gradio_api/upload", "/gradio_api/cancel", "/gradio_api/reset"}
_FILE = "/gradio_api/file="


class Guard:
    """
    ASGI middleware that refuses requests that the app does not need.

    Args:
        app: the application that answers the other requests.
        folder: the only directory whose files are served, which contains the uploaded queries.
        hosts: host names under which the app may be reached; None for any. This prevents pages of other sites from
            reaching it through a name of their own that resolves to this machine.
    """

    def __init__(self, app: Callable, folder: Path, hosts: set[str] | None):
        self.app, self.folder, self.hosts = app, Path(os.path.realpath(folder)), hosts

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        refusal = self._refusal(scope) if scope["type"] != "lifespan" else None
        if refusal is None:
            await self.app(scope, receive, send)
            return
        from starlette.responses import PlainTextResponse

        status, reason = refusal
        await PlainTextResponse(reason, status)(scope, receive, send)

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str] | None:
        """Returns the status and reason of a refusal, or None for a request that is allowed."""
        if scope["type"] != "http":
            return 404, "Not found."
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            return 403, "The app is not served under this host name."
        if "origin" in headers and urlsplit(headers["origin"]).netloc != host:
            return 403, "Pages of other sites cannot use the app."
        method, path = scope["method"], scope["path"]
        if method == "POST" and path in _POST:
            full = path.endswith("/upload") and self._uploaded() > _MAX_UPLOADS
            return (413, "Too many files were uploaded: restart the app.") if full else None
        if method in ("GET", "HEAD"):
            if path in _GET or path.startswith(_GET_BELOW):
                return None
            if path.startswith(_FILE) and self._serves(path.removeprefix(_FILE)):
                return None
        return 404, "Not found."

    def _serves(self, path: str) -> bool:
        real = Path(os.path.realpath(path))
        return os.path.isabs(path) and real.is_relative_to(self.folder) and real.is_file()

    def _uploaded(self) -> int:
        return sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
