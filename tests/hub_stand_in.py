"""A stand-in for the Hugging Face Hub on the loopback, for tests: it serves repositories that are folders.

    with hub_stand_in(folder) as hub:
        subprocess.run([sys.executable, "script.py"], env=hub.environment(home))

`folder/datasets/ORGANISATION/NAME` is the dataset repository `ORGANISATION/NAME`, and likewise below
`folder/models`. Uploads go there. Files may change while it serves: the commit of `main` is a digest of the content.
A request that it does not know gets status 501 and is listed in `unknown_requests`.
"""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from re import Match, Pattern
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, unquote, urlsplit


BRANCH = "main"


class HubStandIn:
    """The repositories below `folder` and the server that offers them; `hub_stand_in` runs it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.unknown_requests: list[str] = []
        self.server = _Server(("127.0.0.1", 0), _Handler)
        self.server.hub = self

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def full_id(self, kind: str, name: str) -> str:
        """Completes a name without its organisation, by which old repositories may be asked for."""
        organisations = [folder.parent.name for folder in (self.folder / kind).glob(f"*/{name}")]
        return f"{organisations[0]}/{name}" if organisations else f"-/{name}"

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that takes this for the Hub and keeps its caches below `home`."""
        return hub_environment(self.endpoint, home)


@contextmanager
def hub_stand_in(folder: Path) -> Iterator[HubStandIn]:
    """Serves the repositories below `folder` while the context is open."""
    hub = HubStandIn(folder)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        thread.join()
        hub.server.server_close()


def hub_environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process whose Hub is at `endpoint`; the libraries read it on import."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return inherited | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_stand_in",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


@dataclass(frozen=True)
class Repository:
    """One repository: its folder, its kind ("models" or "datasets") and its id."""

    folder: Path
    kind: str
    id: str

    def files(self) -> dict[str, bytes]:
        """The content of each file by its path in the repository, sorted."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}

    def commit(self) -> str:
        digest = hashlib.sha1()
        for path, content in self.files().items():
            digest.update(f"{path} {len(content)} ".encode() + content)
        return digest.hexdigest()


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class HubError(Exception):
    """A refusal as the Hub gives it: from `code`, in the header X-Error-Code, clients choose the error."""

    def __init__(self, status: int, code: str, message: str):
        super().__init__(message)
        self.reply = Reply(
            status,
            json.dumps({"error": message}).encode(),
            {"X-Error-Code": code, "X-Error-Message": message, "Content-Type": "application/json"},
        )


class Request(NamedTuple):
    hub: HubStandIn
    match: Match[str]
    body: bytes
    content_type: str

    def repository(self) -> Repository:
        """The repository that the address names.

        Raises:
            HubError: There is no such repository, or no such revision of it.
        """
        kind, name = self.match["kind"] or "models", unquote(self.match["id"])
        if "/" not in name:
            name = self.hub.full_id(kind, name)
        repository = Repository(self.hub.folder / kind / name, kind, name)
        if not repository.folder.is_dir():
            raise HubError(404, "RepoNotFound", "Repository not found")
        revision = unquote(self.match.groupdict().get("revision") or BRANCH)
        if revision not in (BRANCH, repository.commit()):
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository


def _json(value: object) -> Reply:
    return Reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def who_am_i(request: Request) -> Reply:
    return _json({"type": "user", "name": "tester", "orgs": [], "auth": {"accessToken": {"role": "write"}}})


def repository_information(request: Request) -> Reply:
    repository = request.repository()
    siblings = [{"rfilename": path, "size": len(content)} for path, content in repository.files().items()]
    return _json({"id": repository.id, "sha": repository.commit(), "private": False, "tags": [], "siblings": siblings})


def tree(request: Request) -> Reply:
    """Lists the files, and the folders, below a folder of the repository, at all depths."""
    repository = request.repository()
    prefix = unquote(request.match["path"] or "").strip("/")
    entries = [entry for entry in _entries(repository) if entry["path"].startswith(f"{prefix}/" if prefix else "")]
    if prefix and not entries:
        raise HubError(404, "EntryNotFound", f"{prefix} does not exist")
    return _json(entries)


def paths_information(request: Request) -> Reply:
    """Lists those of the asked paths that exist; the paths come as a form or as JSON."""
    if "json" in request.content_type:
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode())["paths"]
    return _json([entry for entry in _entries(request.repository()) if entry["path"] in paths])


def _entries(repository: Repository) -> list[dict[str, Any]]:
    contents = repository.files()
    folders = sorted({str(folder) for path in contents for folder in list(PurePosixPath(path).parents)[:-1]})
    directories = [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders]
    files = [
        {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        for path, content in contents.items()
    ]
    return directories + files


def file_content(request: Request) -> Reply:
    repository = request.repository()
    path = unquote(request.match["path"])
    content = repository.files().get(path)
    if content is None:
        raise HubError(404, "EntryNotFound", f"{path} does not exist")
    headers = {"X-Repo-Commit": repository.commit(), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
    return Reply(200, content, headers)


def create_repository(request: Request) -> Reply:
    """Makes the folder of a repository of the user, or of the organisation in its id."""
    wanted = json.loads(request.body)
    name = f"{wanted.get('organization') or 'tester'}/{wanted['name']}"
    (request.hub.folder / f"{wanted.get('type') or 'model'}s" / name).mkdir(parents=True, exist_ok=True)
    return _json({"url": f"{request.hub.endpoint}/{name}", "name": name})


def accept_card(request: Request) -> Reply:
    return _json({"errors": [], "warnings": []})


def plan_upload(request: Request) -> Reply:
    """Has every file sent within the commit, whatever its size."""
    request.repository()
    files = json.loads(request.body)["files"]
    return _json({"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]})


def commit(request: Request) -> Reply:
    """Writes the files of a commit, which come as lines of JSON."""
    repository = request.repository()
    for line in request.body.splitlines():
        entry = json.loads(line)
        if entry["key"] == "file":
            path = repository.folder / entry["value"]["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(entry["value"]["content"]))
    oid = repository.commit()
    url = f"{request.hub.endpoint}/{repository.id}/commit/{oid}"
    return _json({"commitUrl": url, "commitOid": oid, "hookOutput": ""})


REPOSITORY = r"(?P<id>[^/]+(?:/[^/]+)??)"
REVISION = r"(?P<revision>[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPOSITORY}"

# The first match answers.
ROUTES: list[tuple[str, Pattern[str], Callable[[Request], Reply]]] = [
    ("GET", re.compile("/api/whoami-v2"), who_am_i),
    ("GET", re.compile(rf"{API}/tree/{REVISION}(?P<path>/.*)?"), tree),
    ("POST", re.compile(rf"{API}/paths-info/{REVISION}"), paths_information),
    ("POST", re.compile("/api/repos/create"), create_repository),
    ("POST", re.compile("/api/validate-yaml"), accept_card),
    ("POST", re.compile(rf"{API}/preupload/{REVISION}"), plan_upload),
    ("POST", re.compile(rf"{API}/commit/{REVISION}"), commit),
    ("GET", re.compile(rf"{API}(?:/revision/{REVISION})?"), repository_information),
    (
        "GET",
        re.compile(rf"/(?:(?P<kind>datasets)/)?{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)"),
        file_content,
    ),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubStandIn


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            reply = self._route(body)
        except HubError as error:
            reply = error.reply
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _route(self, body: bytes) -> Reply:
        method = "GET" if self.command == "HEAD" else self.command
        hub = cast(_Server, self.server).hub
        for route_method, pattern, handler in ROUTES:
            match = pattern.fullmatch(urlsplit(self.path).path)
            if match and method == route_method:
                return handler(Request(hub, match, body, self.headers.get("Content-Type") or ""))
        hub.unknown_requests.append(f"{self.command} {self.path}")
        return Reply(501)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keeps the output of the tests free of one line for each request."""
