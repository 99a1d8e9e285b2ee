"""A Hub on loopback, for the real client.

It implements the part of the API of https://huggingface.co that `huggingface_hub` 0.34 to 2.x and transformers use:
create, delete, branches, preupload, large files (Git LFS), commits, listings, files with ranges, card metadata, whoami.
Faults can be injected into it.
"""

import base64
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import ACCOUNTS, DATE, Repository, card_errors, is_large, listing, oid


@dataclass
class Fault:
    """An injected fault, for requests whose "METHOD /path" matches.

    Attributes:
        pattern: Regular expression, searched in "METHOD /path".
        status: HTTP status of the answer.
        headers: Headers of the answer.
        drop: When the connection is closed: "request" after half of the request's body has been read, "answer" after
            the request has been carried out.
        cut: Bytes of the answer's body after which the connection is closed.
        change: Changes the contents of the file that is served.
        act: Called first, while the client waits.
        skip: Number of matching requests that succeed first.
        times: Number of matching requests that then fail.
    """

    pattern: str
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    drop: str | None = None
    cut: int | None = None
    change: Callable[[bytes], bytes] | None = None
    act: Callable[[], object] | None = None
    skip: int = 0
    times: int = 1


class Dropped(Exception):
    """The connection has to be closed."""


class Refused(Exception):
    """An error answer: status, message, the Hub's error code, and further fields."""

    def __init__(self, status, message, code=None, **more):
        self.status, self.body = status, {"error": message, **more}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


class HubServer:
    """The store, the faults, and a log of requests; `url` is what HF_ENDPOINT has to be."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[str] = []
        self.lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def put(self, name, files, *, ref="main", title="first", private=False, gated=False):
        """Commits files to a repository, as a push by somebody else does."""
        repository = self.repositories.setdefault(name, Repository(private, gated))
        return repository.commit(ref, title, files)

    def fail(self, pattern, status=None, **options):
        self.faults.append(Fault(pattern, status, **options))

    def files(self, name, revision="main"):
        return self.repositories[name].at(revision).files

    def titles(self, name, revision="main"):
        return [commit.title for commit in self.repositories[name].history(revision)]

    def state(self):
        """Everything that a push can change, for comparisons."""
        return {
            name: (repository.private, dict(repository.refs), dict(repository.commits))
            for name, repository in self.repositories.items()
        }

    def fault_of(self, request):
        """The fault for a request, whose count it reduces."""
        with self.lock:
            self.log.append(request)
            for fault in self.faults:
                if fault.times and re.search(fault.pattern, request):
                    if fault.skip:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return Fault("")

    def reset(self):
        """Deletes all data, faults and the log."""
        self.repositories.clear()
        self.large.clear()
        self.faults.clear()
        self.log.clear()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One packet for each answer, sent at once: otherwise each waits for the client's delayed acknowledgement.
    wbufsize = -1
    disable_nagle_algorithm = True
    hub: HubServer

    def handle_request(self):
        address = urlsplit(self.path)
        self.request_path, self.query = address.path, parse_qs(address.query, keep_blank_values=True)
        self.fault = self.hub.fault_of(f"{self.command} {self.request_path}")
        try:
            self.body = self.read()
            if self.fault.act:
                self.fault.act()
            if self.fault.status is not None:
                self.answer({"error": f"Injected {self.fault.status}."}, self.fault.headers, self.fault.status)
            else:
                self.answer(*self.route())
        except Refused as error:
            self.answer(error.body, error.headers, error.status)
        except Dropped:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request

    def read(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            blocks = []
            while size := int(self.rfile.readline(), 16):
                blocks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(blocks)
        length = int(self.headers.get("Content-Length", 0))
        if self.fault.drop == "request":
            self.rfile.read(length // 2)
            raise Dropped
        return self.rfile.read(length)

    def answer(self, body, headers=(), status=200):
        if self.fault.drop == "answer":
            raise Dropped
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.fault.cut])
            if self.fault.cut is not None:
                self.wfile.flush()
                raise Dropped

    def log_message(self, *_):
        pass

    # Routes: each of the following returns the answer's body, and optionally headers and a status

    def route(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.account = ACCOUNTS.get(token)
        if token and self.account is None:
            raise Refused(401, "Invalid credentials in Authorization header")
        for pattern, act in (
            ("POST /api/repos/create", self.create),
            ("DELETE /api/repos/delete", self.delete),
            ("POST /api/validate-yaml", self.validate),
            ("GET /api/whoami-v2", self.whoami),
            ("PUT /large/([^/]+)", self.store),
            ("POST /([^/]+/[^/]+).git/info/lfs/objects/batch", self.batch),
            ("[A-Z]+ /api/models/([^/]+/[^/]+)(?:/([a-z]+)(?:/([^/]+)(?:/.*)?)?)?", self.model),
            ("[A-Z]+ /api/(datasets/[^/]+/[^/]+)(?:/([a-z-]+)(?:/([^/]+)(?:/.*)?)?)?", self.model),
            ("[A-Z]+ /((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.resolve),
        ):
            if match := re.fullmatch(pattern, f"{self.command} {self.request_path}"):
                return act(*(part and unquote(part) for part in match.groups()))
        raise Refused(404, f"No such route: {self.request_path}")

    def visible(self, name):
        """The repository, if it exists and the account may see it."""
        repository = self.hub.repositories.get(name)
        if repository is not None and (not repository.private or (self.account and self.account.owns(name))):
            return repository
        # The answer does not reveal whether a private repository exists.
        if self.account is None:
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        raise Refused(404, "Repository not found", "RepoNotFound")

    def check_writes(self, name):
        if self.account is None:
            raise Refused(401, "Invalid username or password.")
        if not self.account.writes or not self.account.owns(name):
            raise Refused(403, "You don't have the rights to do this")

    def named(self):
        """The request's JSON, and the name of the repository in it."""
        values = json.loads(self.body)
        name = f"{values.get('organization') or (self.account and self.account.name)}/{values['name']}"
        self.check_writes(name)
        return values, name

    # Repositories

    def create(self):
        values, name = self.named()
        if name in self.hub.repositories:
            raise Refused(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        repository = Repository(private=bool(values.get("private")) or values.get("visibility") == "private")
        repository.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[name] = repository
        return ({"url": f"{self.hub.url}/{name}", "name": name},)

    def delete(self):
        del self.hub.repositories[self.named()[1]]
        return ({},)

    def whoami(self):
        if self.account is None:
            raise Refused(401, "Invalid username or password.")
        return ({"name": self.account.name, "type": "user", "orgs": [{"name": org} for org in self.account.orgs]},)

    def validate(self):
        errors = [{"message": message} for message in card_errors(json.loads(self.body)["content"])]
        return {"errors": errors, "warnings": []}, {}, 400 if errors else 200

    def model(self, name, endpoint, revision):
        repository, revision = self.visible(name), revision or "main"
        if endpoint == "branch":
            return self.branch(name, repository, revision)
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if endpoint in (None, "revision"):
            return (self.info(name, repository, commit),)
        if endpoint == "tree":
            return (list(listing(commit)),)
        if endpoint == "commits":
            return ([history_entry(commit) for commit in repository.history(revision)],)
        if endpoint == "paths-info":
            paths = parse_qs(self.body.decode())["paths"]
            return ([item for item in listing(commit) if item["path"] in paths],)
        return {"preupload": self.preupload, "commit": self.commit}[endpoint](name, repository, revision)

    def info(self, name, repository, commit):
        siblings = [
            {"rfilename": item["path"], "size": item["size"], "blobId": item["oid"], "lfs": item.get("lfs")}
            if "blobs" in self.query
            else {"rfilename": item["path"]}
            for item in listing(commit)
        ]
        gated = "manual" if repository.gated else False
        fields = {
            "id": name.removeprefix("datasets/"),
            "sha": commit.sha,
            "private": repository.private,
            "gated": gated,
            "tags": [],
        }
        return {**fields, "siblings": siblings}

    def branch(self, name, repository, branch):
        self.check_writes(name)
        if self.command == "DELETE":
            del repository.refs[branch]
        elif branch in repository.refs:
            raise Refused(409, "Reference already exists")
        else:
            repository.refs[branch] = repository.refs["main"]
        return ({},)

    # A commit

    def preupload(self, name, repository, revision):
        if "create_pr" not in self.query:
            self.check_writes(name)
        existing = repository.at(revision).files
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        files = [
            {
                "path": path,
                "uploadMode": "lfs" if is_large(path) else "regular",
                "shouldIgnore": False,
                "oid": oid(path, existing[path]) if path in existing else None,
            }
            for path in paths
        ]
        return ({"files": files},)

    def batch(self, name):
        self.check_writes(name)
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.url}/large/{item['oid']}"}}}
            for item in json.loads(self.body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def store(self, name):
        self.hub.large[name] = self.body
        return ({},)

    def commit(self, name, repository, revision):
        is_pull_request = "create_pr" in self.query
        if not is_pull_request:
            self.check_writes(name)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header, parent = lines[0]["value"], repository.at(revision)
        if header.get("parentCommit", parent.sha) != parent.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        if revision not in repository.refs:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(parent.files)
        for line in lines[1:]:
            path = line["value"]["path"]
            if line["key"] == "file":
                files[path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[path] = self.hub.large[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                del files[path]
            else:
                raise Refused(400, f"Unknown operation {line['key']}")
        ref, answer = revision, {"success": True}
        if is_pull_request:
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
            ref = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{name}/discussions/{number}"
            repository.refs[ref] = parent.sha
        sha = repository.commit(ref, header["summary"], files, header.get("description", ""))
        return ({**answer, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha},)

    # A file

    def resolve(self, name, revision, path):
        repository = self.visible(name)
        commit = repository.at(revision)
        if repository.gated and self.account is None:
            raise Refused(403, "Access to this model is restricted.", "GatedRepo")
        if commit is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        headers = {"ETag": f'"{oid(path, content)}"', "X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if self.fault.change:
            content = self.fault.change(content)
        byte_range = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if byte_range is None:
            return content, headers
        start, end = int(byte_range[1]), int(byte_range[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return content[start : end + 1], headers, 206


def history_entry(commit):
    return {"id": commit.sha, "title": commit.title, "message": commit.description, "authors": [], "date": DATE}
