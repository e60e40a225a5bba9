"""Reading by ranges, writing whole files, and what the disk refuses."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest

from headrace.errors import DamagedError, OptionError, StorageError
from headrace.storage import (
    LocalFile,
    local_path,
    make_folder,
    parse_size,
    put_if_absent,
    quoted,
    read_bytes,
    storage_refusals,
    upload,
    walk,
    write_bytes,
    write_file,
)


@pytest.fixture
def numbers(tmp_path):
    path = tmp_path / "numbers"
    path.write_bytes(bytes(range(256)) * 40)
    return path


def test_a_range_is_read_into_the_callers_buffer(numbers):
    buffer = bytearray(20)
    with LocalFile(numbers) as file:
        file.read_into(250, memoryview(buffer)[5:15])
        assert file.size == 10_240
    assert bytes(buffer) == bytes(5) + bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3]) + bytes(5)


def test_a_file_that_ends_early_says_what_was_expected_and_found(numbers):
    with LocalFile(numbers) as file:
        with pytest.raises(DamagedError, match=r"cut short: at least 10,250 bytes expected, 10,240 found"):
            file.read_into(10_230, bytearray(20))
        with pytest.raises(DamagedError, match="cut short"):
            file.read(0, 1 << 60)


def test_what_memory_forgets_is_read_from_the_disk(numbers):
    with LocalFile(numbers) as file:
        file.drop_cached()
        assert file.read(250, 10) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DamagedError, match=r"gone\.tar is missing"):
        LocalFile(tmp_path / "gone.tar")


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(StorageError, match="cannot read"), LocalFile(tmp_path) as file:
        file.read(0, 1)


@pytest.mark.timeout(30)
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_at_once(tmp_path):
    """Opening a pipe would wait for a writer for ever; /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(StorageError, match="it is not an ordinary file"):
            LocalFile(path)


def test_many_threads_read_one_file(numbers):
    content, wrong = numbers.read_bytes(), []

    def read(start):
        for at in range(start, len(content) - 64, 8):
            if bytes(file.read(at, 64)) != content[at : at + 64]:
                wrong.append(at)

    with LocalFile(numbers) as file:
        threads = [threading.Thread(target=read, args=(start,)) for start in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_a_closed_file_may_be_closed_again(numbers):
    file = LocalFile(numbers)
    file.close()
    file.close()


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    write_file(tmp_path / "a", b"old")
    write_file(tmp_path / "a", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"new")]


def test_what_the_disk_refuses_is_one_line(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match=r"cannot make the folder .*file/below: Not a directory"):
        make_folder(tmp_path / "file" / "below")
    with pytest.raises(StorageError, match=r"cannot write .*gone/a: No such file") as caught:
        write_file(tmp_path / "gone" / "a", b"x")
    assert "\n" not in str(caught.value)


def test_a_full_disk_says_how_much_is_free(tmp_path):
    free = r"No space left on device \([\d,]+ bytes free\); make room"
    with pytest.raises(StorageError, match=free), storage_refusals("write", tmp_path / "a"):
        raise OSError(28, os.strerror(28))


@pytest.mark.parametrize(
    ("url", "path"),
    [("a/b", "a/b"), ("/a", "/a"), ("file:///a%20b", "/a b"), ("file://localhost/a", "/a"), ("a:b", "a:b")],
)
def test_local_urls_are_paths(url, path):
    assert str(local_path(url)) == path


@pytest.mark.parametrize(
    "url",
    ["", "a\0b", "~nobody-of-this-name/x", "s3://bucket/x", "https://host/x", "pipe:cat x", "file://host/a", b"a"],
)
def test_other_urls_are_refused(url):
    with pytest.raises(OptionError):
        local_path(url)


@pytest.mark.parametrize(
    ("text", "size"),
    [("64MiB", 64 << 20), ("1 kB", 1000), ("1.5GiB", 3 << 29), ("17", 17), (4096, 4096), ("2mib", 2 << 20), ("9B", 9)],
)
def test_sizes_as_people_write_them(text, size):
    assert parse_size(text, "size") == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", 0, "1 parsec", "1e9", True, None, 1.5, "9" * 400, 2**63])
def test_other_sizes_are_refused_with_the_options_name(text):
    with pytest.raises(OptionError, match="shard_size must be a number of bytes"):
        parse_size(text, "shard_size")


def test_names_that_would_break_a_line_are_escaped():
    assert quoted("a b/ä.jpg") == "a b/ä.jpg"
    assert quoted("a\nb") == r"'a\nb'"
    assert quoted("a\udcff") == r"'a\udcff'"


def test_a_walk_does_not_follow_a_link_in_a_circle(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"1")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    names = [entry.name for entry in walk(tmp_path)]
    assert sorted(names) == ["a/b/file", "link/file"]


def test_a_file_is_moved_in_from_another_disk(tmp_path):
    """Where renaming cannot do it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        source = Path(elsewhere) / "source"
        source.write_bytes(b"content")
        upload(source, tmp_path / "below" / "a")
        assert not source.exists()
    assert [path.read_bytes() for path in (tmp_path / "below").iterdir()] == [b"content"]


def test_a_disk_without_links_takes_a_name_once_too(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    assert put_if_absent(tmp_path / "a", b"first")
    assert not put_if_absent(tmp_path / "a", b"second")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"first"]


def test_writers_of_one_name_do_not_mix(tmp_path):
    contents = [bytes([number]) * 1_000_000 for number in range(6)]

    def write(content):
        for _ in range(5):
            write_bytes(tmp_path / "a", content)

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "a").exists():
            assert read_bytes(tmp_path / "a") in contents
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
