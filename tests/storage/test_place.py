"""What people type, and the place it names; and that no secret is ever shown or passed on."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import OptionError, StorageError
from headrace.storage import Place, child_environment, local_path, locate

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=20).filter(
    lambda name: name not in (".", "..")
)
SECRET = "X-Amz-Signature=0123456789abcdef"


@pytest.mark.parametrize(
    ("url", "scheme", "root", "key", "name"),
    [
        ("s3://bucket/a/b.tar", "s3", "s3://bucket", "a/b.tar", "b.tar"),
        ("s3://bucket/a/", "s3", "s3://bucket", "a", "a"),
        ("s3://bucket", "s3", "s3://bucket", "", ""),
        ("s3a://bucket/a", "s3", "s3a://bucket", "a", "a"),
        ("gs://bucket/a b/c", "gs", "gs://bucket", "a b/c", "c"),
        ("gcs://bucket/a", "gs", "gcs://bucket", "a", "a"),
        ("az://box/a", "az", "az://box", "a", "a"),
        ("abfss://box@me.dfs.core.windows.net/a", "az", "abfss://box@me.dfs.core.windows.net", "a", "a"),
        ("http://host:80/a%20b", "http", "http://host:80", "a%20b", "a b"),
        ("https://host", "https", "https://host", "", ""),
        ("https://host/a%2Fb", "https", "https://host/a%2Fb", "", "a/b"),
        ("memory://a/b", "memory", "memory:", "a/b", "b"),
        ("memory:a", "memory", "memory:", "a", "a"),
        ("hf://datasets/me/it@main/a", "hf", "hf://datasets", "me/it@main/a", "a"),
        ("hdfs://me@name:8020/a", "hdfs", "hdfs://me@name:8020", "a", "a"),
        ("sftp://me@host:22/a", "sftp", "sftp://me@host:22", "a", "a"),
        ("webhdfs://host:9870/a", "webhdfs", "webhdfs://host:9870", "a", "a"),
    ],
)
def test_a_url_is_a_store_and_a_name_in_it(url, scheme, root, key, name):
    place = locate(url)
    assert (place.scheme, place.root, place.key, place.name) == (scheme, root, key, name)
    assert not place.is_local
    assert str(place) == url.rstrip("/")
    assert repr(place) == f"Place({str(place)!r})"


@pytest.mark.parametrize("path", ["a/b", "/a", "~/a", "a:b", "./s3:x", ".", "C:"])
def test_a_path_is_a_local_place(path):
    place = locate(path)
    assert place.is_local
    assert place.path == Path(path).expanduser() == local_path(place)
    assert str(place) == path
    assert locate(place) is place
    assert locate(Path(path)).path == Path(path).expanduser()


@given(st.lists(NAMES, min_size=1, max_size=4), st.sampled_from(["s3://bucket", "https://host/a", "memory:", "/tmp"]))
def test_joining_goes_down_and_parent_comes_back(names, root):
    start = place = locate(root)
    for name in names:
        down = place / name
        assert down.name == name
        assert down.parent == place or place.text == "memory:"
        place = down
    assert start / "/".join(names) == place
    if not place.is_local and "?" not in place.text and "#" not in place.text and "::" not in place.text:
        assert locate(place.text) == place


@pytest.mark.parametrize("root", ["s3://bucket/a", "https://host/a", "/tmp/a", "memory://a"])
@pytest.mark.parametrize("name", ["", "/b", "b/", "b//c", "..", "b/../c", "./b", ".", "b\0c", "b/\n"])
def test_a_name_that_would_lead_elsewhere_is_refused(root, name):
    with pytest.raises(OptionError, match="a name below"):
        _ = locate(root) / name


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("pipe:cat x", "could run a program"),
        ("pipe://x", "could run a program"),
        ("PIPE:cat x", "could run a program"),
        ("simplecache::s3://bucket/a", "wrap another"),
        ("zip://a::https://host/x.zip", "wrap another"),
        ("shell://x", "could run a program"),
        ("dask://host/x", "could run a program"),
        ("reference://x", "wrap another"),
        ("s3:/bucket/a", "given as a string, not as a Path"),
        (Path("s3://bucket/a"), "given as a string, not as a Path"),
        ("s3://", "must name its bucket"),
        ("s3:///a", "must name its bucket"),
        ("https://", "no URL of a file"),
        ("https:///a", "no URL of a file"),
        ("https://host:no/a", "no URL of a file"),
        ("https://host/a#b", "no URL of a file"),
        ("s3://bucket/a//b", "no empty, . or .. parts"),
        ("s3://bucket/../b", "no empty, . or .. parts"),
        ("https://host/a/%2e%2e/b", "no empty, . or .. parts"),
        ("s3://bucket/a\nb", "no control characters"),
        ("nonesuch://x/y", "neither headrace nor fsspec knows nonesuch"),
        ("file://host/a", "a file URL must be file:///absolute/path"),
        ("", "not empty"),
        ("a\0b", "not empty"),
        (b"a", "not empty"),
        ("~nobody-of-this-name/x", "no home folder"),
    ],
)
def test_what_is_no_place_is_refused(url, words):
    with pytest.raises(OptionError, match=words):
        locate(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@host/a",
        "https://hunter2@host/a",
        "https://me:hun/ter2@host/a",
        "s3://AKIA:hunter2@bucket/a",
        "s3://AKIA:hun/ter2@bucket/a",
        "s3://AKIA:123/hunter2@bucket/a",
        "gs://hunter2@bucket/a",
        "sftp://me:hunter2@host/a",
        "sftp://me:hun/ter2@host/a",
        "hdfs://me:hunter2@host:8020/a",
        "abfss://box:hunter2@me.dfs.core.windows.net/a",
        "az://box/a?sig=hunter2",
        "s3://bucket/a?X-Amz-Signature=hunter2",
    ],
)
def test_a_password_in_a_url_is_refused_and_not_repeated(url):
    with pytest.raises(OptionError) as caught:
        locate(url)
    for part in ("hunter2", "hun", "ter2", "AKIA"):
        assert part not in str(caught.value)
    assert caught.value.__cause__ is None


def test_the_query_of_a_web_url_is_kept_but_never_shown():
    signed, plain = locate(f"https://host/a?{SECRET}"), locate("https://host/a")
    assert signed != plain
    assert signed == locate(f"https://host/a?{SECRET}")
    assert hash(signed) == hash(locate(f"https://host/a?{SECRET}"))
    for shown in (str(signed), repr(signed), f"{signed / 'b'}", str(vars(signed)), signed.key, signed.root):
        assert "Signature" not in shown
        assert "0123" not in shown
    assert (signed / "b").query.reveal() == (signed / "b").parent.query.reveal() == SECRET


def test_the_query_is_not_pickled_and_does_not_reach_another_process():
    place = locate(f"https://host/a?{SECRET}")
    data = pickle.dumps(place)
    assert b"Signature" not in data
    assert pickle.loads(data) == copy.deepcopy(place) == place
    shown = _in_another_process(data, {})
    assert "Place('https://host/a')" in shown
    assert "is not passed on to other processes" in shown
    assert SECRET in _in_another_process(data, child_environment())


def _in_another_process(data, environment):
    code = (
        "import pickle, sys\n"
        "place = pickle.load(sys.stdin.buffer)\n"
        "print(repr(place), bool(place.query), place.query)\n"
        "try: print(place.query.reveal())\n"
        "except Exception as err: print(err)\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=data, capture_output=True, timeout=120, check=True, env=environment)
    return done.stdout.decode()


def test_a_place_without_a_query_needs_no_environment():
    place = pickle.loads(pickle.dumps(locate("s3://bucket/a")))
    assert place == locate("s3://bucket/a") == Place("s3://bucket/a", "s3")


def test_a_broken_variable_of_queries_is_named(monkeypatch):
    place = locate("https://host/a?x=1")
    state = pickle.dumps(place).replace(place.query._handle.encode(), b"0" * 16)
    monkeypatch.setenv("HEADRACE_URL_QUERIES", "[")
    with pytest.raises(StorageError, match="HEADRACE_URL_QUERIES"):
        pickle.loads(state)
