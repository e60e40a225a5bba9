"""The real mosaicml-streaming, in a process of its own, for tests that it has to understand or be understood by.

Only `streaming.base` is imported, which is all that reads and writes MDS. The package's own `__init__` would import
torchvision, and its DataLoader two classes of transformers for `isinstance` alone: neither has a part in the format.
"""

import importlib.util
import pickle
import subprocess
import sys
import types

import pytest

NEEDED = ("streaming", "torch", "brotli", "snappy", "zstd", "catalogue", "tqdm", "filelock")
WAIT_SEC = 120

needs_streaming = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="mosaicml-streaming is not installed (pip install --no-deps -r tests/peers.txt)",
)


class RealStreaming:
    """A process that holds the package. Calls are answered in turn; what it raises is raised here."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def write(self, folder, columns, samples, **options):
        """Write a dataset with MDSWriter."""
        self._call("write", str(folder), columns, samples, options)

    def read(self, folder):
        """All samples by LocalDataset; images as (mode, pixels)."""
        return self._call("read", str(folder))

    def stream(self, remote, local, **options):
        """All samples by StreamingDataset, which copies shards from one folder to the other and checks their hash."""
        return self._call("stream", str(remote), str(local), options)

    def merge(self, folder):
        """Write an index.json over those of the folders below."""
        self._call("merge", str(folder))

    def names(self):
        """Every encoding, compression and hash that the package knows."""
        return self._call("names")

    def close(self):
        """End the process."""
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(WAIT_SEC)
        finally:
            self._process.kill()
            self._process.wait()

    def _call(self, *job):
        pickle.dump(job, self._process.stdin)
        self._process.stdin.flush()
        answer, error = pickle.load(self._process.stdout)
        if error is not None:
            raise RuntimeError(error)
        return answer


@pytest.fixture(scope="module")
def real_streaming():
    """The package, in a process that ends with the module."""
    real = RealStreaming()
    try:
        yield real
    finally:
        real.close()


def _import_base():
    """Import `streaming.base` without what only other parts of the package need."""
    package = types.ModuleType("streaming")
    package.__path__ = list(importlib.util.find_spec("streaming").submodule_search_locations)
    sys.modules["streaming"] = package
    for module, name in (("feature_extraction_utils", "BatchFeature"), ("tokenization_utils_base", "BatchEncoding")):
        sys.modules.setdefault("transformers", types.ModuleType("transformers"))
        sys.modules["transformers." + module] = types.ModuleType("transformers." + module)
        setattr(sys.modules["transformers." + module], name, type(name, (), {}))
    import streaming.base  # noqa: F401


def _write(folder, columns, samples, options):
    from streaming.base import MDSWriter

    with MDSWriter(columns=columns, out=folder, **options) as writer:
        for sample in samples:
            writer.write(sample)


def _read(folder):
    from streaming.base import LocalDataset

    return _samples(LocalDataset(folder))


def _stream(remote, local, options):
    from streaming.base import StreamingDataset

    return _samples(StreamingDataset(remote=remote, local=local, shuffle=False, batch_size=1, **options))


def _samples(dataset):
    return [{name: _plain(value) for name, value in dataset[i].items()} for i in range(len(dataset))]


def _plain(value):
    import numpy as np
    from PIL import Image

    if isinstance(value, list):
        return [_plain(item) for item in value]
    return (value.mode, np.asarray(value)) if isinstance(value, Image.Image) else value


def _merge(folder):
    from streaming.base.util import merge_index

    merge_index(folder, keep_local=True)


def _names():
    from streaming.base.compression import get_compressions
    from streaming.base.format.mds.encodings import get_mds_encodings
    from streaming.base.hashing import get_hashes

    return get_mds_encodings(), get_compressions(), get_hashes()


def _serve():
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # whatever the package prints must not come between answers
    _import_base()
    calls = {"write": _write, "read": _read, "stream": _stream, "merge": _merge, "names": _names}
    while True:
        try:
            name, *arguments = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = calls[name](*arguments), None
        except Exception as err:
            answer = None, f"{type(err).__name__}: {err}"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()
