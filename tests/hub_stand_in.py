"""A stand-in for the Hugging Face Hub on the loopback, for tests.

    with hub_stand_in(folder) as hub:
        subprocess.run([sys.executable, "script.py"], env=hub.environment(home))

Repositories are folders: `folder/datasets/ORGANISATION/NAME` is the dataset repository `ORGANISATION/NAME`, and
likewise below `folder/models`. They hold the files of the branch `main`, which may change while the stand-in serves:
a commit's id is a digest of the content. Older commits and tags live in memory, as long as the object.

Reading is for everybody, writing needs a token of `hub.tokens` with the role "write". Large and binary files come over
LFS as on the Hub, everything else within the commit. What was asked is in `hub.requests`; a request that the stand-in
does not know gets status 501 and is listed in `hub.unknown_requests`.

Failures are ordered for addresses that match a pattern:

    hub.fail("POST .*/commit/", status=500, times=2)    the next two commits
    hub.fail("PUT /lfs/", how="cut")                    the connection ends in the middle of an upload
    hub.fail("PUT /lfs/", how="hang")                   no answer until `hub.heal()`
    hub.heal()                                          none of these any more
    with hub.down(): ...                                connections are refused
"""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from re import Match, Pattern
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qs, unquote, urlsplit


BRANCH = "main"
TOKEN = "hf_stand_in"
USER = "tester"
LFS_SUFFIXES = (".safetensors", ".bin", ".png")
LFS_BYTES = 10_000_000  # a file of this size is large


@dataclass(frozen=True)
class Commit:
    """The files of a repository at one time."""

    id: str
    title: str
    message: str
    files: dict[str, bytes]


@dataclass
class Failure:
    """What is to go wrong with the next `times` requests (None: all) that match `pattern`."""

    pattern: Pattern[str]
    how: str
    status: int
    body: dict
    times: int | None


class HubStandIn:
    """The repositories below `folder` and the server that offers them; `hub_stand_in` runs it.

    Attributes:
        tokens: the role of each token, "write" or "read".
        private: the ids of the repositories that were made private; they are there for known tokens alone.
        requests: method and address of each request so far.
        unknown_requests: those of them that it has no answer to.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.tokens = {TOKEN: "write"}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.unknown_requests: list[str] = []
        self.lock = threading.Lock()  # commits and tags one by one
        self.objects: dict[str, bytes] = {}  # of LFS, by their SHA-256
        self._histories: dict[tuple[str, str], History] = {}
        self._failures: list[Failure] = []
        self._healed = threading.Event()
        self.port = 0
        self._start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def full_id(self, kind: str, name: str) -> str:
        """Completes a name without its organisation, by which old repositories may be asked for."""
        organisations = [folder.parent.name for folder in (self.folder / kind).glob(f"*/{name}")]
        return f"{organisations[0]}/{name}" if organisations else f"-/{name}"

    def environment(self, home: Path) -> dict[str, str]:
        """The environment of a process that takes this for the Hub and keeps its caches below `home`."""
        return hub_environment(self.endpoint, home)

    def repository(self, id: str, kind: str = "models") -> "Repository":
        """A repository, for a test to look into."""
        history = self._histories.setdefault((kind, id), History())
        return Repository(self.folder / kind / id, kind, id, history)

    def fail(
        self, pattern: str, status: int = 500, how: str = "refuse", times: int | None = 1, body: dict | None = None
    ):
        """Orders a failure.

        Args:
            pattern: of `METHOD ADDRESS`, searched from its beginning.
            status: of the answer.
            how: "refuse" answers with the status, "late" does so after it has done what was asked, "cut" ends the
                connection after half of the body, "hang" waits for `heal` and then answers with the status.
            times: after so many the requests succeed again; None: until `heal`.
            body: of the answer; its "error" goes into the header X-Error-Message as well.
        """
        self._failures.append(Failure(re.compile(pattern), how, status, body or {"error": "ordered"}, times))

    def heal(self):
        """Ends all failures, and the waiting of requests that hang."""
        self._failures.clear()
        self._healed.set()
        self._healed = threading.Event()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Connections are refused while the context is open; the address stays the same."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def failure_of(self, request: str) -> Failure | None:
        """The failure that a request meets, which is then used up."""
        with self.lock:
            for failure in self._failures:
                if failure.pattern.match(request):
                    if failure.times is not None:
                        failure.times -= 1
                        if not failure.times:
                            self._failures.remove(failure)
                    return failure
        return None

    def wait_for_heal(self):
        self._healed.wait()

    def close(self):
        self.heal()
        self._stop()

    def _start(self):
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.hub = self
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def _stop(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._server.end_connections()


@contextmanager
def hub_stand_in(folder: Path) -> Iterator[HubStandIn]:
    """Serves the repositories below `folder` while the context is open."""
    hub = HubStandIn(folder)
    try:
        yield hub
    finally:
        hub.close()


def hub_environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process whose Hub is at `endpoint`; the libraries read it on import."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return inherited | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


@dataclass
class History:
    """What a repository's folder does not hold."""

    commits: list[Commit] = field(default_factory=list)  # oldest first
    tags: dict[str, str] = field(default_factory=dict)  # the commit's id by the name


@dataclass(frozen=True)
class Repository:
    """One repository: its folder, its kind ("models" or "datasets"), its id, and its history."""

    folder: Path
    kind: str
    id: str
    history: History

    @property
    def tags(self) -> dict[str, str]:
        """The id of the commit that each tag stands for."""
        return self.history.tags

    def head(self, title: str = "Files changed", message: str = "") -> Commit:
        """The commit of the branch. What the folder holds now becomes one if it was not yet."""
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        files = {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in paths}
        digest = hashlib.sha1()
        for path, content in files.items():
            digest.update(f"{path} {len(content)} ".encode() + content)
        commits = self.history.commits
        if not commits or commits[-1].id != digest.hexdigest():
            commits.append(Commit(digest.hexdigest(), title, message, files))
        return commits[-1]

    def at(self, revision: str) -> Commit:
        """The commit that a branch, tag or id stands for.

        Raises:
            HubError: There is no such revision.
        """
        head = self.head()
        if revision in (BRANCH, f"refs/heads/{BRANCH}"):
            return head
        wanted = self.history.tags.get(revision, revision)
        for known in reversed(self.history.commits):
            if known.id == wanted:
                return known
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


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
    role: str | None

    def repository(self) -> Repository:
        """The repository that the address names.

        Raises:
            HubError: There is no such repository, or it is private.
        """
        kind, name = self.match.groupdict().get("kind") or "models", unquote(self.match["id"])
        if "/" not in name:
            name = self.hub.full_id(kind, name)
        repository = self.hub.repository(name, kind)
        if not repository.folder.is_dir() or (name in self.hub.private and self.role is None):
            raise HubError(404, "RepoNotFound", "Repository not found")
        return repository

    def commit(self) -> Commit:
        """The commit that the address names, of the branch where it names none."""
        return self.repository().at(unquote(self.match.groupdict().get("revision") or BRANCH))


def _json(value: object, status: int = 200) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


# Reading.


def who_am_i(request: Request) -> Reply:
    if request.role is None:
        raise HubError(401, "", "Invalid credentials in Authorization header")
    return _json({"type": "user", "name": USER, "orgs": [], "auth": {"accessToken": {"role": request.role}}})


def repository_information(request: Request) -> Reply:
    repository, found = request.repository(), request.commit()
    siblings = [{"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"]} for entry in _files(found)]
    private = repository.id in request.hub.private
    return _json({"id": repository.id, "sha": found.id, "private": private, "tags": [], "siblings": siblings})


def tree(request: Request) -> Reply:
    """Lists the files, and the folders, below a folder of the repository, at all depths."""
    prefix = unquote(request.match["path"] or "").strip("/")
    entries = [entry for entry in _entries(request) if entry["path"].startswith(f"{prefix}/" if prefix else "")]
    if prefix and not entries:
        raise HubError(404, "EntryNotFound", f"{prefix} does not exist")
    return _json(entries)


def paths_information(request: Request) -> Reply:
    """Lists those of the asked paths that exist; the paths come as a form or as JSON."""
    if "json" in request.content_type:
        paths = json.loads(request.body)["paths"]
    else:
        paths = parse_qs(request.body.decode())["paths"]
    return _json([entry for entry in _entries(request) if entry["path"] in paths])


def _entries(request: Request) -> list[dict[str, Any]]:
    found = request.commit()
    folders = sorted({str(folder) for path in found.files for folder in list(PurePosixPath(path).parents)[:-1]})
    return [{"type": "directory", "path": path, "oid": "0" * 40} for path in folders] + _files(found)


def _files(found: Commit) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
        for path, content in found.files.items()
    ]


def blob_id(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def file_content(request: Request) -> Reply:
    found, path = request.commit(), unquote(request.match["path"])
    if path not in found.files:
        raise HubError(404, "EntryNotFound", f"{path} does not exist")
    headers = {"X-Repo-Commit": found.id, "ETag": f'"{blob_id(found.files[path])}"'}
    return Reply(200, found.files[path], headers)


def references(request: Request) -> Reply:
    repository = request.repository()
    branches = [{"name": BRANCH, "ref": f"refs/heads/{BRANCH}", "targetCommit": repository.head().id}]
    tags = [
        {"name": name, "ref": f"refs/tags/{name}", "targetCommit": target} for name, target in repository.tags.items()
    ]
    return _json({"branches": branches, "converts": [], "tags": tags, "pullRequests": []})


# Writing.


def create_repository(request: Request) -> Reply:
    """Makes the folder of a repository of the user, or of the organisation in its id."""
    wanted = json.loads(request.body)
    name = f"{wanted.get('organization') or USER}/{wanted['name']}"
    kind = f"{wanted.get('type') or 'model'}s"
    folder, address = request.hub.folder / kind / name, {"url": f"{request.hub.endpoint}/{name}", "name": name}
    if folder.is_dir():
        return _json(address | {"error": "You already created this model repo"}, status=409)
    folder.mkdir(parents=True)
    if wanted.get("visibility") == "private" or wanted.get("private"):
        request.hub.private.add(name)
    return _json(address)


def may_write(request: Request) -> Reply:
    request.repository()
    return Reply(200)


def accept_card(request: Request) -> Reply:
    return _json({"errors": [], "warnings": []})


def plan_upload(request: Request) -> Reply:
    """Says of each file whether it is to come over LFS, and what the repository holds in its place."""
    found = request.commit()
    plan = []
    for file in json.loads(request.body)["files"]:
        lfs = file["path"].endswith(LFS_SUFFIXES) or file["size"] >= LFS_BYTES
        entry = {"path": file["path"], "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
        content = found.files.get(file["path"])
        if content is not None:
            entry["oid"] = hashlib.sha256(content).hexdigest() if lfs else blob_id(content)
        plan.append(entry)
    return _json({"files": plan})


def plan_lfs(request: Request) -> Reply:
    """Says where each object goes that is not there yet."""
    request.repository()
    objects = []
    for wanted in json.loads(request.body)["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in request.hub.objects:
            entry["actions"] = {"upload": {"href": f"{request.hub.endpoint}/lfs/{wanted['oid']}"}}
        objects.append(entry)
    return _json({"transfer": "basic", "objects": objects})


def store_object(request: Request) -> Reply:
    """Takes in an object of LFS. The address is as secret as those that the Hub signs: it needs no token."""
    if hashlib.sha256(request.body).hexdigest() != request.match["oid"]:
        raise HubError(400, "", "The content is not that of the object")
    request.hub.objects[request.match["oid"]] = request.body
    return Reply(200)


def commit(request: Request) -> Reply:
    """Writes and deletes the files of a commit, which come as lines of JSON: all of them or none."""
    repository, lines = request.repository(), [json.loads(line) for line in request.body.splitlines()]
    with request.hub.lock:
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repository.head().id):
            raise HubError(412, "", "A commit has happened since. Please refresh and try again.")
        contents: dict[str, bytes | None] = {}
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                contents[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in request.hub.objects:
                    raise HubError(400, "", f"{value['path']}: the object {value['oid']} was not uploaded")
                contents[value["path"]] = request.hub.objects[value["oid"]]
            elif key == "deletedFile":
                contents[value["path"]] = None
        for name, content in contents.items():
            path = repository.folder / name
            if content is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        made = repository.head(header["summary"], header["description"])
    url = f"{request.hub.endpoint}/{repository.id}/commit/{made.id}"
    return _json({"commitUrl": url, "commitOid": made.id, "hookOutput": ""})


def create_tag(request: Request) -> Reply:
    repository, name = request.repository(), json.loads(request.body)["tag"]
    if name in repository.tags:
        raise HubError(409, "", "Reference already exists")
    repository.tags[name] = request.commit().id
    return Reply(200)


def delete_tag(request: Request) -> Reply:
    if request.repository().tags.pop(unquote(request.match["tag"]), None) is None:
        raise HubError(404, "RevisionNotFound", "No such tag")
    return Reply(200)


REPOSITORY = r"(?P<id>[^/]+(?:/[^/]+)??)"
REVISION = r"(?P<revision>[^/]+)"
API = rf"/api/(?P<kind>models|datasets)/{REPOSITORY}"

# The first match answers.
READING: list[tuple[str, Pattern[str], Callable[[Request], Reply]]] = [
    ("GET", re.compile("/api/whoami-v2"), who_am_i),
    ("GET", re.compile(rf"{API}/tree/{REVISION}(?P<path>/.*)?"), tree),
    ("POST", re.compile(rf"{API}/paths-info/{REVISION}"), paths_information),
    ("GET", re.compile(rf"{API}/refs"), references),
    ("POST", re.compile("/api/validate-yaml"), accept_card),
    ("PUT", re.compile("/lfs/(?P<oid>[0-9a-f]{64})"), store_object),
    ("GET", re.compile(rf"{API}(?:/revision/{REVISION})?"), repository_information),
    ("GET", re.compile(rf"/(?:(?P<kind>datasets)/)?{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)"), file_content),
]
WRITING: list[tuple[str, Pattern[str], Callable[[Request], Reply]]] = [
    ("POST", re.compile("/api/repos/create"), create_repository),
    ("GET", re.compile(rf"{API}/auth-check/write"), may_write),
    ("POST", re.compile(rf"{API}/preupload/{REVISION}"), plan_upload),
    ("POST", re.compile(rf"/(?:(?P<kind>datasets)/)?{REPOSITORY}\.git/info/lfs/objects/batch"), plan_lfs),
    ("POST", re.compile(rf"{API}/commit/{REVISION}"), commit),
    ("POST", re.compile(rf"{API}/tag/{REVISION}"), create_tag),
    ("DELETE", re.compile(rf"{API}/tag/(?P<tag>[^/]+)"), delete_tag),
]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: HubStandIn

    def __init__(self, *arguments):
        self.connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def handle_error(self, request, client_address):
        """Keeps the output free of clients that were killed, too; other errors are shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def end_connections(self):
        """Ends those that clients keep open for their next request."""
        for connection in list(self.connections):
            _reset(connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        cast(_Server, self.server).connections.add(self.connection)

    def finish(self) -> None:
        cast(_Server, self.server).connections.discard(self.connection)
        super().finish()

    def _answer(self) -> None:
        hub = cast(_Server, self.server).hub
        request = f"{self.command} {self.path}"
        hub.requests.append(request)
        failure = hub.failure_of(request)
        length = int(self.headers.get("Content-Length") or 0)
        if failure and failure.how == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            _reset(self.connection)
            return
        body = self._body(length)
        if failure and failure.how == "hang":
            hub.wait_for_heal()
        if failure is None or failure.how == "late":
            try:
                reply = self._route(hub, body)
            except HubError as error:
                reply = error.reply
        if failure:
            headers = {"X-Error-Message": str(failure.body["error"])} if "error" in failure.body else {}
            reply = _json(failure.body, failure.status)._replace(headers=headers)
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer

    def _body(self, length: int) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(length)
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(self, hub: HubStandIn, body: bytes) -> Reply:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        role = hub.tokens.get(token)
        if token and role is None:
            raise HubError(401, "", "Invalid credentials in Authorization header")
        method = "GET" if self.command == "HEAD" else self.command
        for routes, writing in ((READING, False), (WRITING, True)):
            for route_method, pattern, handler in routes:
                match = pattern.fullmatch(urlsplit(self.path).path)
                if match and method == route_method:
                    if writing and role != "write":
                        raise HubError(403 if role else 401, "", "This needs a token with the role write")
                    return handler(Request(hub, match, body, self.headers.get("Content-Type") or "", role))
        hub.unknown_requests.append(f"{self.command} {self.path}")
        return Reply(501)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keeps the output of the tests free of one line for each request."""


def _reset(connection: socket.socket):
    """Ends a connection as a crash does."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it has ended by itself
