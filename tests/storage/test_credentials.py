"""Where credentials come from: the environment and the clouds' own files, and never from a place that nobody named."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

from faulty import FaultyServer, status
from headrace.errors import StorageError
from headrace.storage import ReadOptions, clients, locate, read_bytes, write_bytes
from headrace.storage.causes import scrubbed
from headrace.storage.object_store import ObjectStore
from headrace.storage.store import Refused
from servers import AZURE_ACCOUNT, AZURE_KEY

QUICK = ReadOptions(timeout_sec=60)


@pytest.fixture
def endpoint(no_credentials):
    """A server that takes whatever comes, in the place of an S3-compatible store and of an Azure account."""
    with FaultyServer({"/bucket/a": b"content"}) as server:
        no_credentials.setenv("AWS_ENDPOINT_URL", server.url)
        no_credentials.setenv("AZURE_STORAGE_ENDPOINT", server.url)
        no_credentials.setenv("AZURE_STORAGE_ACCOUNT_NAME", "someone")
        yield server


@pytest.fixture
def metadata(no_credentials):
    """A server in the place of the cloud's metadata address, which has no credentials."""
    with FaultyServer({}) as server:
        no_credentials.setenv("AWS_METADATA_ENDPOINT", server.url)
        no_credentials.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", server.url)
        yield server


def write_profile(folder, monkeypatch):
    path = folder / "credentials"
    path.write_text(
        "[lab]\naws_access_key_id = AKIAPROFILE\naws_secret_access_key = profile-secret\nregion = eu-west-3\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_PROFILE", "lab")


@pytest.mark.parametrize("scheme", ["s3", "az"])
def test_at_an_endpoint_of_ones_own_without_credentials_nothing_is_signed_and_no_metadata_asked(
    endpoint, metadata, scheme
):
    assert read_bytes(f"{scheme}://bucket/a", options=QUICK) == b"content"
    assert endpoint.signatures == [None]
    assert metadata.requests == []


def test_a_signed_request_carries_the_key_of_the_environment(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "eu-north-1")
    assert read_bytes("s3://bucket/a", options=QUICK) == b"content"
    assert "Credential=AKIAENVIRONMENT/" in endpoint.signatures[0]
    assert "/eu-north-1/s3/" in endpoint.signatures[0]


def test_the_endpoint_for_s3_goes_before_the_one_for_all(endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://no-such-host.invalid")
    assert read_bytes("s3://bucket/a", options=QUICK) == b"content"


def test_a_profile_is_read_with_boto3(endpoint, metadata, tmp_path, monkeypatch):
    pytest.importorskip("boto3")
    write_profile(tmp_path, monkeypatch)
    assert read_bytes("s3://bucket/a", options=QUICK) == b"content"
    assert "Credential=AKIAPROFILE/" in endpoint.signatures[0]
    assert "/eu-west-3/s3/" in endpoint.signatures[0]
    assert metadata.requests == []


def test_a_profile_without_boto3_says_what_to_install(endpoint, tmp_path, monkeypatch):
    write_profile(tmp_path, monkeypatch)
    monkeypatch.setattr(clients, "find_spec", lambda name: None)
    with pytest.raises(StorageError, match=r"the profile that AWS_PROFILE names are read with boto3: pip install"):
        read_bytes("s3://bucket/a")
    monkeypatch.delenv("AWS_PROFILE")
    with pytest.raises(StorageError, match=r"the credentials in \S*credentials are read with boto3"):
        read_bytes("s3://bucket/a")


def test_an_unknown_profile_is_named(endpoint, tmp_path, monkeypatch):
    pytest.importorskip("boto3")
    write_profile(tmp_path, monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "office")
    with pytest.raises(StorageError, match="office"):
        read_bytes("s3://bucket/a")


def test_without_any_credentials_amazon_is_asked_unsigned_after_its_metadata_gave_none(metadata):
    """As public buckets want it."""
    pytest.importorskip("boto3")
    assert clients._s3_credentials(is_own=False) == {"skip_signature": True}
    assert metadata.requests
    metadata.requests.clear()
    assert clients._s3_credentials(is_own=True) == {"skip_signature": True}
    assert metadata.requests == []


def test_a_refusal_of_a_store_names_its_variables(endpoint):
    endpoint.always = status(403)
    with pytest.raises(
        StorageError, match=r"403 Forbidden; check the credentials in the environment: AWS_ACCESS_KEY_ID"
    ):
        read_bytes("s3://bucket/a")
    with pytest.raises(StorageError, match=r"check the credentials in the environment: AZURE_STORAGE_ACCOUNT_NAME"):
        read_bytes("az://bucket/a")


def test_a_bucket_of_another_region_says_so(endpoint):
    endpoint.always = status(301)
    with pytest.raises(StorageError, match="set AWS_REGION to the bucket's region"):
        read_bytes("s3://bucket/a")


def test_azures_connection_string_is_read(azure, azure_server, monkeypatch):
    write_bytes(azure / "a", b"1")
    endpoint = azure_server.environment["AZURE_STORAGE_ENDPOINT"]
    for name in azure_server.environment:
        monkeypatch.delenv(name)
    text = f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY};BlobEndpoint={endpoint};"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
    assert read_bytes(azure / "a") == b"1"


def test_a_connection_string_that_is_none_is_refused_without_repeating_it(no_credentials):
    no_credentials.setenv("AZURE_STORAGE_CONNECTION_STRING", "AccountKee=very-secret")
    with pytest.raises(StorageError, match="AZURE_STORAGE_CONNECTION_STRING must be") as caught:
        read_bytes("az://bucket/a")
    assert "very-secret" not in str(caught.value)


def test_a_wrong_azure_key_is_told_without_it(azure, monkeypatch):
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "d3Jvbmctc2VjcmV0")
    with pytest.raises(StorageError, match="check the credentials in the environment") as caught:
        read_bytes(azure / "a")
    assert "d3Jvbmctc2VjcmV0" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "variables", "words"),
    [
        (
            "az://bucket/a",
            {"AZURE_STORAGE_ACCOUNT_KEY": "not base64, but secret"},
            "Invalid Access Key.*AZURE_STORAGE_",
        ),
        ("az://bucket/a", {"AZURE_STORAGE_SAS_TOKEN": "secret"}, "SAS query pair; check .*AZURE_STORAGE_SAS_TOKEN"),
        (
            "gs://bucket/a",
            {"GOOGLE_APPLICATION_CREDENTIALS": "/none.json"},
            "/none.json: No such file.*; check .*GOOGLE",
        ),
        ("gs://bucket/a", {"GOOGLE_SERVICE_ACCOUNT_KEY": '{"private_key_id": ["secret"]}'}, "check the credentials"),
        ("s3://bucket/a", {"AWS_ACCESS_KEY_ID": "AKIA"}, "Missing SecretAccessKey; check .*AWS_SECRET_ACCESS_KEY"),
    ],
    ids=["azure-key", "azure-sas", "google-file", "google-key", "aws-half"],
)
def test_credentials_of_which_no_request_can_be_made_are_final_and_not_shown(
    endpoint, monkeypatch, url, variables, words
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=words) as caught:
        read_bytes(url, options=QUICK)
    assert "secret" not in str(caught.value)
    assert "gave up" not in str(caught.value)
    assert endpoint.requests == []


@pytest.mark.parametrize(
    "value", ["localhost:9000", "notaurl", "ftp://host", "http://", "http://a host", "http://k:s@h"]
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AZURE_STORAGE_ENDPOINT"])
def test_an_endpoint_that_is_no_url_is_told(endpoint, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(StorageError, match=r"endpoint must be a URL with its scheme, such as http://host:9000: got "):
        read_bytes("s3://bucket/a" if name.startswith("AWS") else "az://bucket/a", options=QUICK)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
def test_a_key_that_ends_in_a_line_break_is_told(endpoint, monkeypatch, name):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv(name, "some-secret\n")
    with pytest.raises(StorageError, match=rf"^{name} holds a line break or another control character") as caught:
        read_bytes("s3://bucket/a", options=QUICK)
    assert "some-secret" not in str(caught.value)


def test_obstore_breaking_down_is_an_error_of_ours(endpoint):
    """What Rust's panics become is no Exception, and would end a thread that others wait for."""
    panic = type("PanicException", (BaseException,), {})

    def call():
        raise panic("called `Result::unwrap()` on an `Err` value")

    with pytest.raises(Refused, match="obstore broke down: called"):
        ObjectStore(locate("s3://bucket/a"))._call(call)


@pytest.mark.parametrize(
    ("url", "package"),
    [
        ("gs://bucket/a", "gcsfs"),
        ("hf://datasets/me/it/a", "huggingface_hub"),
        ("smb://host/share/a", "smbprotocol"),
    ],
)
def test_a_missing_package_is_named(no_credentials, monkeypatch, url, package):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    imported = import_module("fsspec.registry")._registry
    monkeypatch.delitem(imported, url.partition(":")[0], raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(StorageError, match=rf"URLs need a package that is not installed: .*{package}"):
        read_bytes(url)


def test_a_server_that_ssh_does_not_know_is_refused(sftp, monkeypatch, tmp_path):
    """fsspec itself trusts any server that answers."""
    write_bytes(sftp / "a", b"1")
    monkeypatch.setenv("HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("FSSPEC_ANOTHER_ENVIRONMENT", "1")  # so that it connects anew
    with pytest.raises(StorageError, match=r"is not in ~/\.ssh/known_hosts, or has another key: connect by ssh once"):
        read_bytes(sftp / "a")


def test_a_wrong_password_is_final_and_not_shown(sftp, monkeypatch):
    from fsspec.config import conf

    monkeypatch.setitem(conf, "sftp", conf["sftp"] | {"password": "very-secret"})
    monkeypatch.setenv("FSSPEC_ANOTHER_ENVIRONMENT", "2")  # so that it connects anew
    with pytest.raises(StorageError, match="Authentication") as caught:
        read_bytes(sftp / "a", options=QUICK)
    assert "very-secret" not in str(caught.value)


def test_fsspec_takes_its_own_variables(ftp):
    code = "import sys; from headrace.storage import write_bytes; write_bytes(sys.argv[1], b'1')"
    environment = os.environ | {"FSSPEC_FTP_USERNAME": "anonymous", "FSSPEC_FTP_PASSWORD": "none"}
    subprocess.run([sys.executable, "-c", code, str(ftp / "a")], env=environment, timeout=120, check=True)
    assert read_bytes(ftp / "a") == b"1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no answer\nAuthorization: x", "no answer"),
        ("GET https://host/a?sig=abc&b=c failed", "GET https://host/a?... failed"),
        ("GET https://me:word@host/a failed", "GET https://host/a failed"),
        ("key my-very-secret-key is wrong", "key ... is wrong"),
        ("in /home/me/key.json", "in /home/me/key.json"),
        ("", ""),
    ],
)
def test_what_could_be_secret_is_left_out(text, shown, monkeypatch):
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "my-very-secret-key")
    monkeypatch.setenv("MY_KEY", "very")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/home/me/key.json")
    assert scrubbed(text) == shown


def test_a_querys_parts_are_left_out_of_what_other_libraries_say():
    locate("https://host/a?token=abcdefgh")
    assert scrubbed("cannot open token=abcdefgh") == "cannot open ..."
