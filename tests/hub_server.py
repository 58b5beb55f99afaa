"""A small stand-in of the Hugging Face Hub: the HTTP calls of publishing a model and of loading it, kept in memory.

Tokens with their rights: "hf_write" may write, "hf_read" may not, any other is refused. Private repositories are shown
to both and to nobody else. Files of 10 kB and more go the way of large files (LFS), as the Hub decides by size.
"""

import base64
import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

USER = "someone"
TOKENS = {"hf_write": {"write"}, "hf_read": set()}
LARGE = 10_000


class Hub(ThreadingHTTPServer):
    """Attributes:
    repositories: id -> {"private": bool, "files": {name: bytes}, "commits": number}.
    requests: (method, path) of every request, in order.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.requests: list[tuple[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running():
    """A `Hub` that answers until the block ends."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status: int, body=b"", error: str | None = None, **headers):
        if error is not None:
            body, headers = {"error": error}, {"X-Error-Code": error, "X-Error-Message": error, **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def handle_call(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path).strip("/")
        self.server.requests.append((self.command, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path.startswith("lfs/"):
            if hashlib.sha256(body).hexdigest() != path.removeprefix("lfs/"):
                return self.answer(400, error="BadObject")
            self.server.objects[path.removeprefix("lfs/")] = body
            return self.answer(200)
        if token and token not in TOKENS:
            return self.answer(401, error="Unauthorized")
        rights = TOKENS.get(token)
        if path == "api/whoami-v2":
            return self.answer(200, {"name": USER, "type": "user"}) if token else self.answer(401, error="Unauthorized")
        if path == "api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "api/repos/create":
            return self.create(json.loads(body), rights)
        for repo_id, repo in self.server.repositories.items():
            for head in (f"api/models/{repo_id}", f"{repo_id}.git/info/lfs/objects/batch", repo_id):
                if path == head or path.startswith(f"{head}/"):
                    if repo["private"] and rights is None:
                        break
                    return self.repository(repo_id, repo, path.removeprefix(head).strip("/").split("/"), body, rights)
        return self.answer(404, error="RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_call

    def create(self, wanted: dict, rights):
        repo_id = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not repo_id.startswith(f"{USER}/") or "write" not in (rights or ()):
            return self.answer(403, error="Forbidden")
        url = {"url": f"{self.server.url}/{repo_id}", "name": repo_id}
        if repo_id in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo", **url})
        private = wanted.get("private") or wanted.get("visibility") == "private"  # newer clients send the latter
        self.server.repositories[repo_id] = {"private": private, "files": {}, "commits": 0}
        return self.answer(200, url)

    def repository(self, repo_id: str, repo: dict, path: list[str], body: bytes, rights):
        action, files = path[0], repo["files"]
        commit = f"{repo['commits']:040x}"
        if self.command == "POST" and "write" not in (rights or ()):
            return self.answer(403, error="Forbidden")
        if action == "preupload":
            modes = {file["path"]: "lfs" if file["size"] >= LARGE else "regular" for file in json.loads(body)["files"]}
            answers = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            return self.answer(200, {"files": answers, "commitOid": commit})
        if action == "" and self.command == "POST":  # LFS batch
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.url}/lfs/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            return self.answer(200, {"transfer": "basic", "objects": objects})
        if action == "commit":
            for operation in map(json.loads, body.splitlines()):
                value = operation["value"]
                if operation["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif operation["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif operation["key"] == "deletedFile":
                    del files[value["path"]]
            repo["commits"] += 1
            commit = f"{repo['commits']:040x}"
            url = f"{self.server.url}/{repo_id}/commit/{commit}"
            return self.answer(200, {"success": True, "commitOid": commit, "commitUrl": url})
        if action in ("", "revision"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer(200, {"id": repo_id, "sha": commit, "private": repo["private"], "siblings": siblings})
        if action == "tree":
            folder = "/".join(path[2:])
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
                if name.startswith(folder)
            ]
            return self.answer(200, entries) if entries or not folder else self.answer(404, error="EntryNotFound")
        if action == "resolve":
            content = files.get("/".join(path[2:]))
            if content is None:
                return self.answer(404, error="EntryNotFound", X_Repo_Commit=commit)
            tag = f'"{hashlib.sha256(content).hexdigest()}"'
            return self.answer(200, content, ETag=tag, X_Repo_Commit=commit, Content_Type="application/octet-stream")
        return self.answer(404, error="EntryNotFound")
