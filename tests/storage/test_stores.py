"""The same verbs on every store, against real servers."""

import threading

import pytest
from webhdfs import WebHdfs

from headrace.errors import DamagedError, OptionError, StorageError
from headrace.storage import (
    Entry,
    exists,
    file_version,
    is_folder,
    list_folder,
    locate,
    open_file,
    put_if_absent,
    read_bytes,
    remove,
    upload,
    walk,
    write_bytes,
)

CONTENT = bytes(range(256)) * 40
STORES = ["local", "memory", "s3", "s3_strict", "azure", "gcs", "webdav", "sftp", "webhdfs"]


@pytest.fixture
def local(tmp_path):
    return locate(tmp_path / "store")


@pytest.fixture
def memory(request):
    return locate(f"memory://{request.node.name}")


@pytest.fixture
def webhdfs(tmp_path):
    pytest.importorskip("requests")
    (tmp_path / "hdfs").mkdir()
    with WebHdfs(tmp_path / "hdfs") as server:
        yield locate(f"webhdfs://127.0.0.1:{server.server_port}/store")


@pytest.fixture(params=STORES)
def store(request):
    """An empty folder in a store."""
    return request.getfixturevalue(request.param)


def test_what_is_written_is_read(store):
    write_bytes(store / "a/b", b"old")
    write_bytes(store / "a/b", CONTENT)
    assert read_bytes(store / "a/b") == CONTENT
    buffer = bytearray(20)
    with open_file(store / "a/b") as file:
        assert file.size == len(CONTENT)
        assert file.is_remote != store.is_local
        file.read_into(250, memoryview(buffer)[5:15])
        assert bytes(file.read(len(CONTENT) - 3, 3)) == CONTENT[-3:]
        assert bytes(file.read(7, 0)) == b""
    assert bytes(buffer) == bytes(5) + CONTENT[250:260] + bytes(5)


def test_an_empty_file_is_a_file(store):
    write_bytes(store / "empty", b"")
    assert read_bytes(store / "empty") == b""
    with open_file(store / "empty") as file:
        assert file.size == 0
        assert file.stream().read() == b""
    assert exists(store / "empty")


def test_a_file_that_ends_early_says_what_was_expected_and_found(store):
    write_bytes(store / "a", CONTENT)
    with open_file(store / "a") as file:
        with pytest.raises(DamagedError, match=r"a is cut short: at least 10,250 bytes expected, 10,240 found"):
            file.read_into(10_230, bytearray(20))
        with pytest.raises(DamagedError, match="cut short"):
            file.read(0, 1 << 60)


def test_a_file_written_anew_is_another_version(store):
    """Where the store tells: then nothing is read of another content than the one that was asked for."""
    if store.is_local:
        return
    write_bytes(store / "a", CONTENT)
    size, version = file_version(store / "a")
    assert (size, version) == (len(CONTENT), file_version(store / "a")[1])
    with open_file(store / "a", size=size, version=version) as file:
        assert bytes(file.read(0, size)) == CONTENT
        write_bytes(store / "a", CONTENT[::-1])
        assert version is None or file_version(store / "a")[1] != version
        if version is not None:
            with pytest.raises(DamagedError, match="a is not the file it was: it was written anew"):
                file.read(0, size)


def test_a_missing_file_is_named(store):
    for read in (open_file, read_bytes):
        with pytest.raises(DamagedError, match=r"gone\.tar is missing"):
            read(store / "gone.tar")
    assert not exists(store / "gone.tar")


def test_a_folder_lists_what_lies_in_it_and_a_walk_all_below(store):
    for name in ("z", "a/x", "a/y", "a/b/c", "ab"):
        write_bytes(store / name, name.encode())
    assert list_folder(store) == [Entry("a", 0, True), Entry("ab", 2, False), Entry("z", 1, False)]
    assert list_folder(store / "a") == [Entry("b", 0, True), Entry("x", 3, False), Entry("y", 3, False)]
    assert sorted(walk(store)) == [
        Entry("a/b/c", 5, False),
        Entry("a/x", 3, False),
        Entry("a/y", 3, False),
        Entry("ab", 2, False),
        Entry("z", 1, False),
    ]
    assert exists(store / "a")
    assert is_folder(store / "a")
    assert not is_folder(store / "ab")


def test_where_there_is_no_folder_nothing_is_listed(store):
    assert list_folder(store / "none") == []
    assert list(walk(store / "none")) == []
    assert not is_folder(store / "none")


@pytest.mark.parametrize("name", ["with space", "a%41b", "a#b", "ä", "a+b&c=d", "a[1]", "a~b'c", "a:b@c"])
def test_names_are_kept_whatever_is_in_them(store, name):
    write_bytes(store / name, name.encode())
    assert read_bytes(store / name) == name.encode()
    assert [entry.name for entry in list_folder(store)] == [name]
    assert (store / name).name == name
    assert (store / name).parent == store


def test_a_removed_file_is_gone_and_removing_it_again_is_fine(store):
    write_bytes(store / "a", b"1")
    remove(store / "a")
    remove(store / "a")
    assert not exists(store / "a")


@pytest.mark.filterwarnings("ignore:Sending a large body directly")  # aiohttp's advice to gcsfs
def test_a_file_is_moved_in_whole(store, tmp_path):
    """21 MB, more than one part, where there are parts."""
    parts = store.scheme in ("s3", "az", "gs", "memory")
    source, content = tmp_path / "source", bytes(range(251)) * (83_000 if parts else 8_000)
    source.write_bytes(content)
    upload(source, store / "below" / "big")
    assert read_bytes(store / "below" / "big") == content
    assert not source.exists()
    with open_file(store / "below" / "big") as file:
        assert file.stream().read() == content


def test_a_missing_source_of_a_move_is_named(store, tmp_path):
    with pytest.raises(StorageError, match=r"source: No such file"):
        upload(tmp_path / "source", store / "a")


def test_a_name_is_taken_once(store):
    assert put_if_absent(store / "lock", b"first")
    assert not put_if_absent(store / "lock", b"second")
    assert read_bytes(store / "lock") == b"first"


@pytest.mark.parametrize("kind", ["local", "memory", "s3_strict", "azure"])
def test_of_many_that_take_a_name_at_once_one_gets_it(kind, request):
    store, won = request.getfixturevalue(kind), []

    def take(number):
        if put_if_absent(store / "lock", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [read_bytes(store / "lock")] == [b"%d" % number for number in won]


def test_many_threads_read_one_file(store):
    write_bytes(store / "a", CONTENT)
    wrong = []

    def read(start):
        for at in range(start, len(CONTENT) - 64, 1600):
            if bytes(file.read(at, 64)) != CONTENT[at : at + 64]:
                wrong.append(at)

    with open_file(store / "a") as file:
        threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_listing_of_thousands_is_whole(memory, s3_strict):
    for store, count in ((memory, 2_500), (s3_strict, 1_010)):
        for number in range(count):
            write_bytes(store / f"f{number:05}", b"")
        names = [f"f{number:05}" for number in range(count)]
        assert [entry.name for entry in list_folder(store)] == names
        assert sorted(entry.name for entry in walk(store)) == names


def test_files_of_a_web_server_are_read(web):
    (web.folder / "a b#c%41ä.bin").write_bytes(CONTENT)
    place = web.place / "a b#c%41ä.bin"
    assert read_bytes(place) == CONTENT
    with open_file(place, size=len(CONTENT)) as file:
        assert bytes(file.read(1000, 100)) == CONTENT[1000:1100]
    assert exists(place)
    assert not exists(web.place / "none")


def test_a_web_server_without_listing_says_so(web):
    with pytest.raises(StorageError, match="this web server has no listing of folders"):
        list_folder(web.place)
    assert not is_folder(web.place)


def test_a_web_server_that_takes_no_files_says_so(web):
    with pytest.raises(StorageError, match=r"cannot write .*: 405 Method Not Allowed"):
        write_bytes(web.place / "a", b"1")


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(StorageError, match=r"cannot list s3://no-such-bucket: .*NoSuchBucket"):
        list_folder("s3://no-such-bucket")
    with pytest.raises(DamagedError, match="is missing"):
        read_bytes("s3://no-such-bucket/a")


def test_an_azure_url_may_name_its_account(azure, monkeypatch):
    write_bytes(azure / "a", b"1")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
    with pytest.raises(StorageError, match="which account"):
        read_bytes(azure / "a")
    assert read_bytes(f"abfss://bucket@devstoreaccount1.dfs.core.windows.net/{azure.key}/a") == b"1"


def test_what_is_local_only_says_so_for_a_store():
    with pytest.raises(OptionError, match="this must be a path on a local disk: got s3://bucket/a"):
        _ = locate("s3://bucket/a").path
