"""The set of digests: exact whatever lies in memory or on the disk, and bounded in memory."""

import subprocess
import sys

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from headrace.packing.seen import Seen

# Few words, so that digests share one of their halves, are each other's neighbours, and 0 is among them.
_WORDS = st.sampled_from([0, 1, 2, 255, 4095, 4096, 2**32, 2**63, 2**64 - 1])
_DIGESTS = st.one_of(
    st.builds(lambda high, low: high << 64 | low, _WORDS, _WORDS.filter(lambda low: low != 1)),
    st.integers(0, 5000).map(lambda n: xxhash.xxh3_128_intdigest(n.to_bytes(4, "little"))),
)


@given(st.lists(_DIGESTS, max_size=400))
def test_it_is_a_set(tmp_path_factory, digests):
    """A table of 16 slots, so that runs are written and merged several times over."""
    seen, model = Seen(tmp_path_factory.mktemp("seen"), max_slots=16), set()
    for digest in digests:
        assert (digest in seen) == (digest in model)
        assert seen.add(digest) == (digest not in model)
        model.add(digest)
    assert all(digest in seen for digest in model)
    seen.close()


def test_runs_are_merged(tmp_path):
    seen = Seen(tmp_path, max_slots=256)
    digests = [xxhash.xxh3_128_intdigest(b"%d" % i) for i in range(30_000)]
    assert all(map(seen.add, digests))
    assert not any(map(seen.add, digests[::97]))
    assert len(seen._runs) < 40  # 195 were written
    seen.close()


def test_nothing_has_a_name(tmp_path):
    seen = Seen(tmp_path, max_slots=16)
    for i in range(100):
        seen.add(i)
    assert list(tmp_path.iterdir()) == []
    seen.close()


MEMORY = """
import pathlib, sys, xxhash
from pathlib import Path
from headrace.packing.seen import Seen
seen = Seen(Path(sys.argv[1]), max_slots=1 << 16)
before = int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
for i in range(400_000):
    seen.add(xxhash.xxh3_128_intdigest(i.to_bytes(8, "little")))
print(int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) - before)
"""


def test_memory_is_bounded_by_the_table(tmp_path):
    """400,000 digests in a table of 65,536 slots take no more than the table, its sorting and a merge."""
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # KiB; a Python set of them takes 60,000
