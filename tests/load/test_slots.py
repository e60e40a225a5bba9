"""A slot in which several processes allocate: nothing is given to two, also while it grows."""

import itertools
import json
import subprocess
import sys

NUM_PROCESSES, NUM_TURNS = 4, 1500

CODE = """
import json, os, sys
from headrace.load.slots import Slot

slot = Slot(0, is_shared=True)
readers = []
for number in range(int(sys.argv[1])):
    reading, writing = os.pipe()
    if os.fork() == 0:
        mine = Slot(0, is_shared=True, fd=slot.fd)
        taken = []
        for turn in range(int(sys.argv[2])):
            size = 1 + (turn * 7919 + number) % 9000
            begin, view = mine.allocate(size)
            view[:] = number
            taken.append((begin, size))
        with os.fdopen(writing, "w") as file:
            json.dump(taken, file)
        os._exit(0)
    os.close(writing)
    readers.append(reading)
taken = [json.load(os.fdopen(reading)) for reading in readers]
view = slot.view()
kept = all((view[begin : begin + size] == number).all() for number, each in enumerate(taken) for begin, size in each)
print(json.dumps({"taken": [one for each in taken for one in each], "kept": bool(kept), "used": slot.used}))
"""


def test_what_processes_are_given_does_not_overlap():
    command = [sys.executable, "-c", CODE, str(NUM_PROCESSES), str(NUM_TURNS)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout)
    taken = sorted(found["taken"])
    assert len(taken) == NUM_PROCESSES * NUM_TURNS
    assert all(begin + size <= after for (begin, size), (after, _) in itertools.pairwise(taken))
    assert taken[0][0] > 0, "the beginning says how much is taken"
    assert sum(taken[-1]) <= found["used"]
    assert found["kept"]
