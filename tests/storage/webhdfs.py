"""A gateway that speaks WebHDFS, as Hadoop documents it, over a folder: enough for fsspec to read and write."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PREFIX = "/webhdfs/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = self.server.folder / unquote(parts.path).removeprefix(PREFIX).lstrip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            getattr(self, query["op"].lower())(path, query, body)
        except FileNotFoundError:
            self.refuse(404, "FileNotFoundException")

    do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_):
        pass

    def reply(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status, exception):
        self.reply({"RemoteException": {"exception": exception, "message": f"{exception} here"}}, status)

    def redirected(self):
        """A name node sends clients to the data node: here to itself. True if it has just done so."""
        if "data=1" in self.path:
            return False
        self.reply(b"", 307, Location=f"http://127.0.0.1:{self.server.server_port}{self.path}&data=1")
        return True

    def getfilestatus(self, path, _query, _body):
        self.reply({"FileStatus": status(path, "")})

    def liststatus(self, path, _query, _body):
        found = [status(path, "")] if path.is_file() else [status(below, below.name) for below in path.iterdir()]
        self.reply({"FileStatuses": {"FileStatus": found}})

    def open(self, path, query, _body):
        if not self.redirected():
            first = int(query.get("offset", 0))
            self.reply(path.read_bytes()[first : first + int(query.get("length", 1 << 60))])

    def create(self, path, _query, body):
        if not self.redirected():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(body)
            self.reply(b"", 201)

    def append(self, path, _query, body):
        if not self.redirected():
            with path.open("ab") as file:
                file.write(body)
            self.reply(b"")

    def mkdirs(self, path, _query, _body):
        path.mkdir(parents=True, exist_ok=True)
        self.reply({"boolean": True})

    def rename(self, path, query, _body):
        target = self.server.folder / query["destination"].lstrip("/")
        is_free = not target.exists()  # HDFS does not rename onto a file, and says so in its answer only
        if is_free:
            path.rename(target)
        self.reply({"boolean": is_free})

    def delete(self, path, _query, _body):
        path.unlink()
        self.reply({"boolean": True})


def status(path, name):
    kind, size = ("DIRECTORY", 0) if path.is_dir() else ("FILE", path.stat().st_size)
    return {"pathSuffix": name, "type": kind, "length": size}


class WebHdfs(ThreadingHTTPServer):
    """`with WebHdfs(folder) as server:` serves the folder at `webhdfs://127.0.0.1:{server.server_port}/`."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder

    def __enter__(self):
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self._thread.join()
        self.server_close()
