"""A local Hub: the part of huggingface.co's HTTP interface that pushing and loading models needs, in memory."""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import constants

TOKEN = "hf_test"
USER = "tester"
LFS_SUFFIXES = (".safetensors", ".bin", ".mp4")


@dataclass
class Repository:
    """A repository. `commits` maps the id of each commit to all of its files, oldest commit first."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        content = [branch, message, str(len(self.commits)), *(name + _git_hash(files[name]) for name in sorted(files))]
        commit_id = hashlib.sha1("\n".join(content).encode()).hexdigest()
        self.commits[commit_id] = files
        self.messages[commit_id] = message
        self.branches[branch] = commit_id
        return commit_id

    def resolve(self, revision: str) -> str | None:
        """Returns the id of the commit that a branch or a commit id names, or None."""
        return self.branches.get(revision, revision if revision in self.commits else None)


class LocalHub:
    """
    Serves repositories at `url`, a free port of this machine, until it is stopped. Anyone may read what is not
    private; writing requires a token in `tokens`, and only repositories of `USER` can be written to. A request with
    another token is refused, whatever it is for. Use it as a context manager.

    `repositories` has models by name, and Spaces by `spaces/` and their name. `quota` limits the total bytes of large
    files. `faults` maps patterns of requests such as "POST /api/repos/create" to the answer: a status, a message and,
    optionally, an error code, or None for a connection that breaks in the middle of the request. `on_request` is
    called with each request before it is answered.
    """

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.tokens = {TOKEN}
        self.quota: int | None = None
        self.faults: dict[str, tuple | None] = {}
        self.on_request: Callable[[str], Any] = lambda request: None
        self.large_files: dict[str, bytes] = {}  # by their SHA-256
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.hub = self  # type: ignore[attr-defined]
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def use_in_this_process(self, monkeypatch, directory: Path):
        """Makes this the Hub of huggingface_hub, with the token `TOKEN` and a cache in `directory`, for one test."""
        for name, value in {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(directory / "cache"),
            "HF_TOKEN_PATH": str(directory / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # it may belong to another Hub
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Retries after broken connections do not wait.
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))

    def stop(self):
        """Refuses connections from now on. The server cannot be started again."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _RequestError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message}
        self.headers |= {"X-Error-Code": code} if code else {}
        self.headers |= {"X-Repo-Commit": commit} if commit else {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # clients keep their connection
    wbufsize = -1  # headers and body leave in one packet

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_):
        pass

    def _answer(self):
        path = unquote(urlsplit(self.path).path)
        self.hub: LocalHub = self.server.hub  # type: ignore[attr-defined]
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        self.hub.on_request(request)
        fault = next((fault for pattern, fault in self.hub.faults.items() if re.search(pattern, request)), ())
        if fault is None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return None
        self.body = self._read_body()
        try:
            if fault:
                raise _RequestError(*fault)
            if "Authorization" in self.headers:
                self._check_token()
            for methods, pattern, action in _ROUTES:
                if self.command in methods and (match := re.fullmatch(pattern, path)):
                    # Uploads go to a signed URL, and anyone may check whether a card is valid.
                    if self.command not in ("GET", "HEAD") and action not in (_Handler.upload, _Handler.validate_card):
                        self._check_token()
                    with self.hub.lock:
                        found = match.groupdict()
                        if found.pop("kind", None) == "spaces":
                            found["repo"] = f"spaces/{found['repo']}"
                        return action(self, **found)
            raise _RequestError(404, f"The local Hub has no {self.command} {path}")
        except _RequestError as error:
            return self._send_json({"error": str(error)}, error.status, error.headers)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, content: Any, status: int = 200, headers: dict[str, str] | None = None):
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _check_token(self):
        if not self._has_token():
            raise _RequestError(401, "Invalid credentials in Authorization header")

    def _has_token(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens

    def _repository(self, repo: str) -> Repository:
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self._has_token()):
            raise _RequestError(404, "Repository not found", "RepoNotFound")
        return repository

    def _check_owner(self, repo: str):
        if repo.removeprefix("spaces/").partition("/")[0] != USER:
            raise _RequestError(403, "Forbidden: you must use a write token of its owner to write to this repository.")

    def _files(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(repo)
        commit = repository.resolve(revision)
        if commit is None:
            raise _RequestError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit, repository.commits[commit]

    # Accounts and repositories

    def whoami(self):
        self._check_token()
        self._send_json({"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}})

    def create_repo(self):
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        repo = f"spaces/{name}" if wanted.get("type") == "space" else name
        known = repo in self.hub.repositories
        if not name.startswith(f"{USER}/"):
            owner = wanted["organization"]
            raise _RequestError(403, f'You don\'t have the rights to create a model under the namespace "{owner}".')
        if not known:
            private = wanted.get("visibility") == "private" or wanted.get("private") is True
            self.hub.repositories[repo] = repository = Repository(private)
            page = {"README.md": b"---\nsdk: gradio\n---\n"} if wanted.get("type") == "space" else {}
            repository.commit("main", page, "initial commit")
        answer = {"url": f"{self.hub.url}/{repo}", "id": name, "name": name}
        if known:
            answer["error"] = "You already created this model repo"
        self._send_json(answer, status=409 if known else 200)

    def delete_repo(self):
        wanted = json.loads(self.body)
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
        repo = f"spaces/{name}" if wanted.get("type") == "space" else name
        self._repository(repo)
        self._check_owner(repo)
        del self.hub.repositories[repo]
        self._send(b"")

    def info(self, repo: str, revision: str | None = None):
        commit, files = self._files(repo, revision or "main")
        siblings = [{"rfilename": name, "size": len(files[name])} for name in sorted(files)]
        private = self.hub.repositories[repo].private
        name = repo.removeprefix("spaces/")
        self._send_json({"id": name, "sha": commit, "private": private, "siblings": siblings, "tags": []})

    def tree(self, repo: str, revision: str, folder: str | None = None):
        commit, files = self._files(repo, revision)
        prefix = f"{folder}/" if folder else ""
        below = {name: content for name, content in files.items() if name.startswith(prefix)}
        if folder and not below:
            raise _RequestError(404, f"{folder} does not exist on {revision}", "EntryNotFound", commit)
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sorted(below.items()):
            inner = name.removeprefix(prefix).split("/")
            if len(inner) > 1 and not recursive:
                path = prefix + inner[0]
                entries[path] = {"type": "directory", "path": path, "oid": _git_hash(path.encode()), "size": 0}
                continue
            entries[name] = {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
            if _is_large(name):
                entries[name]["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
        self._send_json(list(entries.values()))

    def validate_card(self):
        self._send_json({"errors": [], "warnings": []})

    # Pushing: upload modes, then large files, then the commit

    def preupload(self, repo: str, revision: str):
        _, present = self._files(repo, revision)
        self._check_owner(repo)
        answers = []
        for name in (file["path"] for file in json.loads(self.body)["files"]):
            answer = {"path": name, "uploadMode": "lfs" if _is_large(name) else "regular", "shouldIgnore": False}
            if name in present:  # clients skip unchanged files
                answer["oid"] = _sha256(present[name]) if _is_large(name) else _git_hash(present[name])
            answers.append(answer)
        self._send_json({"files": answers})

    def lfs_batch(self, repo: str):
        self._repository(repo)
        self._check_owner(repo)
        objects = []
        wanted_bytes = sum(wanted["size"] for wanted in json.loads(self.body)["objects"])
        if self.hub.quota is not None and sum(map(len, self.hub.large_files.values())) + wanted_bytes > self.hub.quota:
            raise _RequestError(403, "Private repository storage limit reached, please upgrade your plan.")
        for wanted in json.loads(self.body)["objects"]:
            known = wanted["oid"] in self.hub.large_files
            upload = {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}}
            objects.append({"oid": wanted["oid"], "size": wanted["size"]} | ({} if known else upload))
        self._send_json({"transfer": "basic", "objects": objects})

    def upload(self, oid: str):
        if _sha256(self.body) != oid:
            raise _RequestError(400, "The content does not match its SHA-256")
        self.hub.large_files[oid] = self.body
        self._send(b"")

    def commit(self, repo: str, revision: str):
        head, present = self._files(repo, revision)
        files, message = dict(present), ""
        self._check_owner(repo)
        for operation in map(json.loads, self.body.splitlines()):
            value = operation["value"]
            match operation["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", head) != head:
                        raise _RequestError(412, "A commit has happened since. Please refresh and try again.")
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large_files[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
                case unknown:
                    raise _RequestError(400, f"The local Hub cannot commit a {unknown}")
        commit = self._repository(repo).commit(revision, files, message)
        address = f"{self.hub.url}/{repo}/commit/{commit}"
        self._send_json({"success": True, "commitUrl": address, "commitOid": commit, "pullRequestUrl": None})

    # Loading

    def resolve(self, repo: str, revision: str, name: str):
        commit, files = self._files(repo, revision)
        if name not in files:
            raise _RequestError(404, "Entry not found", "EntryNotFound", commit)
        content = files[name]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_git_hash(content)}"'}
        if _is_large(name):
            headers |= {"X-Linked-ETag": f'"{_sha256(content)}"', "X-Linked-Size": str(len(content))}
        self._send(content, headers=headers)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = f"/api/(?P<kind>models|spaces)/{_REPO}"
_ROUTES = [
    (("GET",), "/api/whoami-v2", _Handler.whoami),
    (("POST",), "/api/repos/create", _Handler.create_repo),
    (("DELETE",), "/api/repos/delete", _Handler.delete_repo),
    (("POST",), "/api/validate-yaml", _Handler.validate_card),
    (("GET",), f"{_API}", _Handler.info),
    (("GET",), f"{_API}/revision/(?P<revision>.+)", _Handler.info),
    (("GET",), f"{_API}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    (("POST",), f"{_API}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), f"{_API}/commit/(?P<revision>.+)", _Handler.commit),
    (("POST",), f"/((?P<kind>spaces)/)?{_REPO}[.]git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", _Handler.upload),
    (("GET", "HEAD"), f"/((?P<kind>spaces)/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
]


def _is_large(name: str) -> bool:
    return name.endswith(LFS_SUFFIXES)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
