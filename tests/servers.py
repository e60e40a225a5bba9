"""Real stores on this machine: S3, Azure, Google Cloud Storage, a web server, SFTP and FTP, each a process of its own.

A server is started at the first test that needs it and ended with the session. The two that come from npm are
installed at the first use, pinned, into the virtual environment's folder. Where a program or npm is missing, the tests
that need it are skipped and say what is missing.

`s3`, `s3_strict`, `azure`, `gcs`, `web`, `webdav`, `sftp` and `ftp` set the environment for one test and give an empty
place of its own; `web` gives a folder on the disk, too, since nothing can be written through it.
"""

import base64
import contextlib
import email.utils
import fcntl
import hashlib
import hmac
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.storage import Place, locate
from waiting import running, wait_for

BINARIES = Path(sys.executable).parent
NPM_FOLDER = Path(sys.prefix) / "npm"
NPM_VERSIONS = {"s3rver": "3.7.1", "azurite": "3.35.0"}

# Azurite's account and key are the same everywhere and in its documentation.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

BUCKET = "bucket"
_CLOUD_PREFIXES = ("AWS_", "AZURE_", "AZURITE_", "GOOGLE_", "FSSPEC_", "STORAGE_EMULATOR_", "GCSFS_", "NO_GCE_CHECK")


@dataclass
class Server:
    """A running server: where it listens, and the environment that a client needs."""

    port: int
    environment: dict[str, str] = field(default_factory=dict)
    known_hosts: str = ""

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@dataclass
class Web:
    """A folder, and the place where a web server shows it."""

    place: Place
    folder: Path


@contextlib.contextmanager
def serving(command, **options):
    """The port of a server that answers; `command(port)` is what starts it."""
    with tempfile.TemporaryFile() as log, socket.socket() as probe:
        # Kept until the end: nobody else is given the port, and with this option the server may listen there all the
        # same.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with running(command(port), stdout=log, stderr=log, **options) as process:
            wait_for(lambda: answers(port) or process.poll() is not None, f"{process.args[0]} to listen")
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"{process.args} ended with {process.returncode}: {log.read().decode()[-2000:]}")
            yield port


def answers(port):
    """Whether something listens on the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


def program(name):
    """The program of a Python package in this environment. Skips the test where it is not installed."""
    path = BINARIES / name
    if not path.exists():
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    return str(path)


def npm_program(package, name):
    """A program of an npm package, installed at the first use. Skips the test where npm or the registry is missing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip(f"npm is not installed, which {package} comes by")
    version = NPM_VERSIONS[package]
    folder = NPM_FOLDER / f"{package}-{version}"
    NPM_FOLDER.mkdir(parents=True, exist_ok=True)
    with (NPM_FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs of the tests may meet here
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _npm_install(f"{package}@{version}", folder)
            (folder / "done").touch()
    return str(folder / "node_modules" / ".bin" / name)


def _npm_install(package, folder):
    folder.mkdir()
    command = ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, cwd=folder)
    if done.returncode:
        pytest.skip(f"npm cannot install {package}: {done.stderr.strip()[-300:]}")


@pytest.fixture
def no_credentials(monkeypatch, tmp_path):
    """No cloud's credentials, wherever the tests run."""
    for name in list(os.environ):
        if name.startswith(_CLOUD_PREFIXES):
            monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    return monkeypatch


def _reach(server, monkeypatch):
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    """s3rver: fast, but it ignores conditions on writes."""
    binary, folder = npm_program("s3rver", "s3rver"), tmp_path_factory.mktemp("s3")
    options = ["-d", str(folder), "-a", "127.0.0.1", "--configure-bucket", BUCKET]
    with serving(lambda port: [binary, *options, "-p", str(port)]) as port:
        yield Server(port, aws_environment("127.0.0.1", port, "S3RVER", "S3RVER"))


@pytest.fixture(scope="session")
def s3_strict_server():
    """moto: slow, but true to S3's conditions on writes."""
    binary = program("moto_server")
    with serving(lambda port: [binary, "-H", "127.0.0.1", "-p", str(port)]) as port:
        server = Server(port, aws_environment("127.0.0.1", port, "some-key-id", "some-secret-key"))
        _request(f"{server.url}/{BUCKET}", "PUT")
        yield server


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory):
    binary, folder = npm_program("azurite", "azurite-blob"), tmp_path_factory.mktemp("azure")
    options = ["--silent", "--location", str(folder), "--skipApiVersionCheck", "--disableTelemetry"]
    options += ["--blobHost", "127.0.0.1"]
    with serving(lambda port: [binary, *options, "--blobPort", str(port)]) as port:
        endpoint = f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}"
        _make_container(endpoint)
        names = {"ACCOUNT_NAME": AZURE_ACCOUNT, "ACCOUNT_KEY": AZURE_KEY, "ENDPOINT": endpoint}
        yield Server(port, {f"AZURE_STORAGE_{name}": value for name, value in names.items()})


@pytest.fixture(scope="session")
def gcs_server():
    binary = program("gcp-storage-emulator")
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed: pip install -e '.[dev]'")
    options = ["start", "--host", "127.0.0.1", "--in-memory", f"--default-bucket={BUCKET}"]
    with serving(lambda port: [binary, *options, "--port", str(port)]) as port:
        yield Server(port, {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"})


@pytest.fixture(scope="session")
def web_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="session")
def web_server(web_folder):
    """rclone's web server: ranges, but no listing and no writing."""
    with _rclone("http", web_folder) as server:
        yield server


@pytest.fixture(scope="session")
def webdav_server(tmp_path_factory):
    with _rclone("webdav", tmp_path_factory.mktemp("webdav")) as server:
        yield server


@pytest.fixture(scope="session")
def ftp_server(tmp_path_factory):
    with _rclone("ftp", tmp_path_factory.mktemp("ftp")) as server:
        yield server


@pytest.fixture(scope="session")
def sftp_server(tmp_path_factory):
    if importlib.util.find_spec("paramiko") is None:
        pytest.skip("paramiko is not installed: pip install -e '.[dev]'")
    import paramiko

    folder = tmp_path_factory.mktemp("sftp")
    key = paramiko.RSAKey.generate(2048)
    key.write_private_key_file(str(folder / "key"))
    (folder / "files").mkdir()
    options = ["--user", "me", "--pass", "some-password", "--key", str(folder / "key")]
    with _rclone("sftp", folder / "files", *options) as server:
        server.known_hosts = f"[127.0.0.1]:{server.port} ssh-rsa {key.get_base64()}\n"
        yield server


@contextlib.contextmanager
def _rclone(kind, folder, *options):
    binary = program("rclone")
    # Files come and go behind rclone's back.
    command = [binary, "serve", kind, "--config", os.devnull, "--dir-cache-time", "5ms", *options, str(folder)]
    with serving(lambda port: [*command, "--addr", f"127.0.0.1:{port}"]) as port:
        yield Server(port)


@pytest.fixture
def s3(s3_server, no_credentials):
    _reach(s3_server, no_credentials)
    return locate(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def s3_strict(s3_strict_server, no_credentials):
    _reach(s3_strict_server, no_credentials)
    return locate(f"s3://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def azure(azure_server, no_credentials):
    _reach(azure_server, no_credentials)
    return locate(f"az://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def gcs(gcs_server, no_credentials):
    _reach(gcs_server, no_credentials)
    return locate(f"gs://{BUCKET}/{uuid.uuid4().hex}")


@pytest.fixture
def web(web_server, web_folder):
    name = uuid.uuid4().hex
    (web_folder / name).mkdir()
    return Web(locate(f"{web_server.url}/{name}"), web_folder / name)


@pytest.fixture
def webdav(webdav_server):
    return locate(f"{webdav_server.url}/{uuid.uuid4().hex}")


@pytest.fixture
def ftp(ftp_server):
    return locate(f"ftp://127.0.0.1:{ftp_server.port}/{uuid.uuid4().hex}")


@pytest.fixture
def sftp(sftp_server, tmp_path, monkeypatch):
    """A place on a server that ssh knows, with the password where FSSPEC_SFTP_PASSWORD would put it."""
    from fsspec.config import conf

    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "known_hosts").write_text(sftp_server.known_hosts)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setitem(conf, "sftp", {"password": "some-password", "look_for_keys": False, "allow_agent": False})
    return locate(f"sftp://me@127.0.0.1:{sftp_server.port}/{uuid.uuid4().hex}")


def aws_environment(host, port, key, secret):
    """By what a client finds an S3 server."""
    return {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
    }


def _request(url, method, **headers):
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status


def _make_container(endpoint):
    """What obstore cannot do: make a container, by a request signed with the account's key."""
    date = email.utils.formatdate(usegmt=True)
    headers = {"x-ms-date": date, "x-ms-version": "2021-08-06"}
    canonical = "".join(f"{name}:{value}\n" for name, value in headers.items())
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    text = "PUT" + "\n" * 12 + canonical + resource
    digest = hmac.new(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    _request(f"{endpoint}/{BUCKET}?restype=container", "PUT", **headers)
