"""A cache's folder may be removed at any time, as its tag says, also while it is opened."""

import os
import shutil
import threading

import pytest

from headrace.load.decoded.folder import FolderStore
from headrace.storage.cache.folder import FolderCache
from headrace.storage.cache.own import TRIES, again_if_removed

OPENINGS = 300


def blocks_in(folder):
    return FolderCache(str(folder), 1 << 20)


def decoded_in(folder):
    return FolderStore(str(folder), "3f" * 16, 10, 1 << 20)


@pytest.fixture(params=[blocks_in, decoded_in])
def opened(request):
    return request.param


def test_a_folder_that_is_removed_again_and_again_while_it_is_opened(opened, tmp_path):
    over = threading.Event()

    def remove():
        while not over.wait(0.001):
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        for _ in range(OPENINGS):
            opened(tmp_path / "cache")
    finally:
        over.set()
        remover.join()


def test_a_cache_that_has_lost_its_mark_is_marked_again(opened, tmp_path):
    before = opened(tmp_path / "cache")
    (tag,) = tmp_path.glob("cache/*/CACHEDIR.TAG")
    text = tag.read_bytes()
    tag.unlink()
    opened(tmp_path / "cache")
    assert tag.read_bytes() == text
    del before


def test_no_descriptor_is_left_however_often_the_folder_went_while_it_was_opened(opened, tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    test_a_folder_that_is_removed_again_and_again_while_it_is_opened(opened, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_it_is_not_tried_for_ever():
    tries = []

    def gone():
        tries.append(None)
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        again_if_removed(gone)
    assert len(tries) == TRIES
