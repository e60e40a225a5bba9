"""What users' functions, forks, interrupts and edited states do to a feed: an error or the right batches, no hang."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import headrace as hr
from headrace.errors import LoaderError, OptionError, StateError, TransformError
from headrace.load.channel import Channel
from waiting import DEADLINE_SEC, alive, family, running, wait_for, wait_gone, wait_own_gone

NUM_SAMPLES = 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("hostile") / "packed"
    samples = (
        {"__key__": f"{i:06d}", "npy": np.full(8, i, np.float32), "cls": i % 10, "bin": bytes([i]) * (i % 7)}
        for i in range(NUM_SAMPLES)
    )
    hr.pack(samples, target, shuffle=False)
    return target


@pytest.fixture(scope="module")
def dataset(folder):
    return hr.open(folder)


@pytest.fixture(scope="module")
def stream(dataset):
    return hr.Stream(dataset, shuffle=False)


def number(sample):
    return int(sample["__key__"])


def keys_of(loader):
    return [key for batch in loader for key in batch["__key__"]]


def test_arrays_of_the_other_byte_order_keep_their_values(stream):
    def make(sample):
        return {"fixed": np.arange(3, dtype=">i4"), "ragged": np.arange(number(sample) % 3 + 1).astype(">i2")}

    batch = next(iter(hr.Loader(stream.map(make), batch_size=4)))
    assert batch["fixed"].tolist() == [[0, 1, 2]] * 4
    assert [r.tolist() for r in batch["ragged"]] == [[0], [0, 1], [0, 1, 2], [0]]
    collated = hr.Loader(stream, batch_size=4, collate=lambda samples: {"x": np.arange(3).astype(">i4")})
    assert next(iter(collated))["x"].tolist() == [0, 1, 2]


def test_what_a_forked_process_lets_go_of_stays_valid_here(dataset):
    loader = hr.Loader(hr.Stream(dataset, shuffle=False, epochs=None).decode(), batch_size=4)
    batches = iter(loader)
    held = next(batches)
    next(batches)
    pid = os.fork()
    if pid == 0:
        try:
            del held
            next(batches)
        except LoaderError as err:
            os._exit(0 if "in the process that made it" in str(err) else 2)
        os._exit(3)
    assert os.waitpid(pid, 0)[1] == 0
    for _ in range(10):
        next(batches)
    assert held["npy"][:, 0].tolist() == [0, 1, 2, 3]
    loader.close()


@pytest.mark.parametrize("processes", [1, 2])
def test_an_exit_in_a_function_is_an_error_that_names_the_sample(stream, processes):
    def leave(sample):
        if number(sample) == 30:
            sys.exit(3)
        return sample

    with pytest.raises(TransformError, match=r"sample '000030': it ended in SystemExit"):
        list(hr.Loader(stream.map(leave), batch_size=4, threads=2, processes=processes))


def test_an_exit_in_collate_is_an_error_in_the_place_of_its_batch(stream):
    def collate(samples):
        if any(number(sample) == 30 for sample in samples):
            sys.exit(3)
        return {"n": len(samples)}

    seen = []
    loader = hr.Loader(stream, batch_size=4, threads=2, collate=collate)
    with pytest.raises(TransformError, match="collate failed on 4 samples: SystemExit"):
        seen.extend(batch["__key__"] for batch in loader)
    assert len(seen) == 7


def test_a_worker_that_dies_by_chance_costs_nothing(stream, tmp_path):
    """Law 7: the same batches come out."""

    def die_once(sample):
        if number(sample) == 30 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return sample

    assert keys_of(hr.Loader(stream.map(die_once), batch_size=4, processes=2)) == [
        f"{i:06d}" for i in range(NUM_SAMPLES)
    ]
    assert (tmp_path / "died").exists()


def test_a_killed_loader_is_noticed_though_a_process_that_it_forked_lives_on(dataset, tmp_path):
    def fork_once(sample):
        if number(sample) == 0 and not (tmp_path / "pid").exists():
            pid = os.fork()
            if pid == 0:
                time.sleep(600)
                os._exit(0)
            (tmp_path / "pid").write_text(str(pid))
        return sample

    try:
        with hr.Loader(hr.Stream(dataset, shuffle=False).map(fork_once), batch_size=4) as loader:
            batches = iter(loader)
            keys = next(batches)["__key__"]
            os.kill(loader._client.pid, signal.SIGKILL)
            keys += [key for batch in batches for key in batch["__key__"]]
            assert keys == [f"{i:06d}" for i in range(NUM_SAMPLES)]
            assert [one.reason for one in loader.restarts] == ["killed by SIGKILL"]
        assert alive([int((tmp_path / "pid").read_text())])
    finally:
        for file in tmp_path.glob("pid"):
            os.kill(int(file.read_text()), signal.SIGKILL)


@pytest.mark.parametrize("rank", [0, 2, 3])
def test_a_rank_without_samples_of_its_own_gets_repeats(tmp_path, rank):
    hr.pack(({"cls": i} for i in range(3)), tmp_path / "packed")
    options = {"global_batch_size": 4, "rank": rank, "world_size": 4, "drop_last": False}
    batches = list(hr.Loader(hr.Stream(hr.open(tmp_path / "packed")), **options))
    assert [b["__real__"].tolist() for b in batches] == [[rank < 3]]


def test_every_rank_has_the_marks_of_a_padded_step(dataset):
    for rank in range(4):
        options = {"global_batch_size": 44, "rank": rank, "world_size": 4, "drop_last": False}
        marks = ["__real__" in batch for batch in hr.Loader(hr.Stream(dataset, partitions=4), **options)]
        assert marks == [False] * 5  # 200 = 4 x 44 + 24, and 4 divides 24
        options["global_batch_size"] = 36
        marks = ["__real__" in batch for batch in hr.Loader(hr.Stream(dataset, partitions=4), **options)]
        assert marks == [False] * 6
    for rank in range(3):
        options = {"global_batch_size": 27, "rank": rank, "world_size": 3, "drop_last": False}
        marks = ["__real__" in batch for batch in hr.Loader(hr.Stream(dataset), **options)]
        assert marks == [False] * 7 + [True]  # 200 = 7 x 27 + 11, and 3 does not divide 11


def test_a_slot_that_cannot_be_had_is_an_error_each_time_and_no_hang(stream):
    def limit(sample):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
        return {"x": np.zeros(1 << 18)}

    with hr.Loader(stream.map(limit), batch_size=4) as loader:
        for _ in range(8):
            with pytest.raises(hr.errors.StorageError, match="the loader process cannot get what it needs"):
                next(iter(loader))


class Unmakeable:
    """Pickles, and does not unpickle."""

    def __reduce__(self):
        return (int, ("not a number",))


def test_what_cannot_be_made_again_here_is_an_error_each_time_and_no_hang(stream):
    with hr.Loader(stream.map(lambda s: {"x": Unmakeable()}), batch_size=4) as loader:
        for _ in range(8):
            with pytest.raises(TransformError, match="cannot be made again in the trainer: ValueError"):
                next(iter(loader))


def test_what_cannot_be_sent_names_its_field(stream):
    for processes in (1, 2):
        with pytest.raises(TransformError, match=r"(field 'x'|sample '0000\d\d').*cannot be sent"):
            next(iter(hr.Loader(stream.map(lambda s: {"x": (i for i in [])}), batch_size=4, processes=processes)))


class Interrupted(Exception):
    """What a signal's handler raises here."""


class Interrupts:
    """Raises Interrupted in the main thread, once, some time after `set`; never after `end`.

    Not by an alarm: the limit on a test's time is one.
    """

    def __enter__(self):
        self._armed = False
        self._before = signal.signal(signal.SIGUSR1, self._raise)
        return self

    def set(self, delay_sec):
        self._armed = True
        main = threading.main_thread().ident
        self._timer = threading.Timer(delay_sec, lambda: signal.pthread_kill(main, signal.SIGUSR1))
        self._timer.start()

    def end(self):
        self._armed = False
        self._timer.cancel()
        self._timer.join()

    def __exit__(self, *_):
        signal.signal(signal.SIGUSR1, self._before)

    def _raise(self, *_):
        if self._armed:
            self._armed = False
            raise Interrupted


# What an interrupt cuts off between making an object and keeping it is left to the garbage collector, which says so.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_the_middle_of_a_message_breaks_nothing(dataset):
    """As Ctrl-C in a notebook: the next iteration gives the right batches."""
    stream = hr.Stream(dataset, shuffle=False).map(lambda s: {"big": ["x" * 50_000]})
    rng = np.random.default_rng(0)
    with Interrupts() as interrupts, hr.Loader(stream, batch_size=20) as loader:
        for _ in range(12):
            with contextlib.suppress(Interrupted):  # it may come until `end` has begun
                try:
                    interrupts.set(float(rng.uniform(0.001, 0.2)))
                    list(loader)
                finally:
                    interrupts.end()
        assert keys_of(loader) == [f"{i:06d}" for i in range(NUM_SAMPLES)]


def test_an_interrupted_start_leaves_no_process(stream, monkeypatch):
    """Not even the descriptors by which it would be ended."""

    def interrupted(self, body, fds=()):
        raise Interrupted

    def descriptors():
        return set(os.listdir("/proc/self/fd"))

    with hr.Loader(stream, batch_size=4) as loader:
        next(iter(loader))  # so that what is loaded once is loaded
        loader.close()
        processes, before = family(os.getpid()), descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(Channel, "send_bytes", interrupted)
            with pytest.raises(Interrupted):
                next(iter(loader))
        wait_own_gone(processes)
        wait_for(lambda: descriptors() <= before, "the end of every descriptor")
        assert len(keys_of(loader)) == NUM_SAMPLES


def test_after_an_interrupted_close_a_loader_goes_on_with_a_new_process(stream, monkeypatch):
    """As Ctrl-C pressed twice: the second comes while the first ends the process."""

    def interrupted(timeout=None):
        monkeypatch.undo()
        raise Interrupted

    with hr.Loader(stream, batch_size=4) as loader:
        next(iter(loader))
        process = loader._client._process._process
        monkeypatch.setattr(process, "wait", interrupted)
        with pytest.raises(Interrupted):
            loader.close()
        assert process.returncode is not None
        assert len(keys_of(loader)) == NUM_SAMPLES


def test_a_rare_filter_does_not_change_what_a_batch_holds(stream):
    """Known shapes stay tensors, and an empty batch has every field, though no probed sample passes."""
    batches = list(hr.Loader(stream.decode().filter(lambda s: number(s) % 97 == 5), batch_size=20))
    assert [len(b["__key__"]) for b in batches] == [1, 0, 0, 0, 0, 1, 0, 0, 0, 1][:10]
    for batch in batches:
        assert batch["cls"].dtype == torch.int64
        assert batch["npy"].shape == (len(batch["__key__"]), 8)
        assert isinstance(batch["bin"], list)


def test_elements_of_a_list_field_do_not_change_each_other(stream):
    def make(sample):
        return {"x": [None, np.ones(2), sample["bin"], "text"][number(sample) % 4]}

    for processes in (1, 2):
        loader = hr.Loader(stream.map(make, shapes={"x": None}), batch_size=4, processes=processes)
        for none, ones, blob, text in (batch["x"] for batch in loader):
            assert none is None
            assert torch.equal(ones, torch.ones(2, dtype=torch.float64))
            assert isinstance(blob, memoryview)
            assert text == "text"


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([{}]), "an array of object"),
        (np.array(["2020-01-01"], "datetime64[D]"), r"an array of datetime64\[D\]"),
        (np.zeros(2, np.longdouble), "an array of float128"),
        (np.array(["a"]), "an array of <U1"),
        (torch.zeros(2, dtype=torch.bfloat16), "a tensor that numpy cannot hold"),
    ],
    ids=["object", "datetime", "longdouble", "text", "bfloat16"],
)
def test_arrays_that_no_tensor_holds_are_named(stream, value, message, processes):
    with pytest.raises(TransformError, match=rf"sample '0000\d\d': field 'x' is {message}"):
        next(iter(hr.Loader(stream.map(lambda s: {"x": value}), batch_size=4, processes=processes)))


@pytest.mark.parametrize("processes", [1, 2])
def test_odd_values_arrive_as_they_are(stream, processes):
    def make(sample):
        return {
            "empty": np.zeros((0, 3)),
            "half": np.float16(2),
            "name": np.str_("n"),
            "nested": {"view": sample["bin"]},
        }

    batch = next(iter(hr.Loader(stream.map(make), batch_size=4, processes=processes)))
    assert batch["empty"].shape == (4, 0, 3)
    assert batch["half"].dtype == torch.float16
    assert batch["name"] == ["n"] * 4
    assert [bytes(one["view"]) for one in batch["nested"]] == [bytes([i]) * i for i in range(4)]


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**5000], ids=["2^63", "-2^63-1", "10^5000"])
def test_an_int_that_no_tensor_holds_is_named_with_its_sample(stream, value):
    message = r"sample '000017': field 'x' is an int that int64 does not hold, but in this stream it is int64"
    with pytest.raises(TransformError, match=message):
        list(hr.Loader(stream.map(lambda s: {"x": value if number(s) == 17 else 1}), batch_size=4))


def test_ints_of_which_no_tensor_holds_any_come_as_a_list(stream):
    batch = next(iter(hr.Loader(stream.map(lambda s: {"x": 2**64}), batch_size=4)))
    assert batch["x"] == [2**64] * 4


def test_an_error_stops_the_feed(stream, tmp_path):
    """Nothing is begun behind the error; only what was begun before it may be made as well."""

    def count(sample):
        with open(tmp_path / "calls", "a") as file:
            file.write(".")
        if number(sample) == 16:
            raise ValueError
        return sample

    with hr.Loader(stream.map(count), batch_size=4, threads=1, prefetch=2) as loader, pytest.raises(TransformError):
        list(loader)
    # Three samples are tried for their shapes, and five batches are under way at most: the error's and four behind it.
    assert 3 + 17 <= (tmp_path / "calls").stat().st_size <= 3 + 16 + 5 * 4


@pytest.mark.parametrize(
    "change",
    [
        {"position": 17},
        {"position": 10**6},
        {"position": -8},
        {"position": 10**30},
        {"position": True},
        {"epoch": 1.0},
        {"epoch": 0, "first_epoch": 7},
        {"version": True},
        {"order": {"partitions": 48.0}},
        {"order": {"partitions": 10**9}},
        {"order": {"shuffle": 0}},
        {"order": {"mixture": 1}},
    ],
    ids=str,
)
def test_an_edited_state_is_refused_and_changes_nothing(stream, change):
    loader = hr.Loader(stream, batch_size=8)
    before = loader.state_dict()
    edited = {**before, **change, "order": {**before["order"], **change.get("order", {})}}
    with pytest.raises(StateError):
        loader.load_state_dict(edited)
    assert loader.state_dict() == before


def test_a_state_at_the_end_of_the_full_batches_goes_on_with_the_next_epoch(dataset):
    stream = hr.Stream(dataset, epochs=2)
    with hr.Loader(stream, batch_size=16, drop_last=False) as kept:
        for _ in zip(range(12), kept, strict=False):
            pass
        state = kept.state_dict()
    with hr.Loader(stream, batch_size=16) as dropped:
        whole = [batch["__key__"] for batch in dropped]
        dropped.load_state_dict(json.loads(json.dumps(state)))
        assert [batch["__key__"] for batch in dropped] == whole[12:]


def test_the_older_of_two_iterators_ends_in_an_error(stream):
    with hr.Loader(stream, batch_size=4) as loader:
        older, newer = iter(loader), iter(loader)
        assert next(newer)["__key__"][0] == "000000"
        with pytest.raises(LoaderError, match="this iteration has ended"):
            next(older)


def test_many_open_files_are_no_obstacle(folder):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "keep = [open('/dev/null') for _ in range(1100)]\nimport headrace as hr\n"
        "print(sum(len(b['__key__']) for b in hr.Loader(hr.Stream(hr.open(sys.argv[1])), batch_size=4)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=DEADLINE_SEC)
    assert (done.stdout, done.stderr) == (f"{NUM_SAMPLES}\n", "")


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("end", ["import os; os.kill(os.getpid(), 9)", "loader.close()"], ids=["killed", "closed"])
def test_nothing_is_left_though_a_function_is_in_the_middle_of_something(folder, tmp_path, end, processes):
    """Law 9: not even a process that sleeps in a function of the user's."""
    code = (
        "import sys, threading\nimport headrace as hr\n"
        "asleep = sys.argv[2]\n"
        "def slow(sample):\n"
        "    import os, pathlib, time\n"
        "    pathlib.Path(asleep, str(os.getpid())).touch()\n"
        "    time.sleep(600)\n"
        "stream = hr.Stream(hr.open(sys.argv[1])).map(slow, shapes={'x': None})\n"
        f"loader = hr.Loader(stream, batch_size=4, processes={processes}, collate=lambda samples: {{}})\n"
        "threading.Thread(target=lambda: next(iter(loader)), daemon=True).start()\n"
        f"input()\n{end}\ninput()\n"
    )
    (tmp_path / "asleep").mkdir()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with running([sys.executable, "-c", code, folder, tmp_path / "asleep"], **pipes) as run:
        wait_for(lambda: len(os.listdir(tmp_path / "asleep")) == processes or run.poll() is not None, "sleepers")
        started = [pid for pid in family(run.pid) if pid != run.pid]
        assert {int(name) for name in os.listdir(tmp_path / "asleep")} <= set(started)
        assert len(started) == (1 if processes == 1 else 3)
        run.stdin.write(b"\n")
        run.stdin.flush()
        wait_gone(started)


def test_a_dataset_stays_where_it_is_though_the_process_moves(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    stream = hr.Stream(hr.open(folder.name), shuffle=False)
    monkeypatch.chdir(tmp_path)
    assert len(keys_of(hr.Loader(stream, batch_size=10))) == NUM_SAMPLES


def test_descriptors_are_not_passed_on_to_other_programs(stream):
    with hr.Loader(stream, batch_size=4) as loader:
        next(iter(loader))
        assert not any(os.get_inheritable(fd) for fd in loader._client._slots._fds.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 4.0}, "batch_size must be a whole number, at least 1: got 4.0"),
        ({"batch_size": "4"}, "batch_size must be a whole number"),
        ({"batch_size": 4, "threads": 1.5}, "threads must be a whole number"),
        ({"batch_size": 4, "prefetch": True}, "prefetch must be at least 1: got True"),
        ({"batch_size": 4, "collate": 3}, "collate is a function"),
        ({"batch_size": 4, "drop_last": "x"}, "drop_last must be True or False"),
    ],
)
def test_options_of_the_wrong_type_are_refused(stream, options, message):
    with pytest.raises(OptionError, match=message):
        hr.Loader(stream, **options)


def test_a_streams_options_of_the_wrong_type_are_refused(dataset):
    for options in ({"seed": "1"}, {"seed": 1.5}, {"shuffle": "no"}, {"partitions": 48.0}, {"partitions": 10**8}):
        with pytest.raises(OptionError, match=next(iter(options))):
            hr.Stream(dataset, **options)
    with pytest.raises(OptionError, match=r"a loader runs a headrace.Stream: got Dataset"):
        hr.Loader(dataset, batch_size=4)
    state = hr.Loader(hr.Stream(dataset, seed=np.int64(3)), batch_size=np.int64(4)).state_dict()
    assert json.loads(json.dumps(state)) == state


def test_a_function_that_cannot_be_sent_is_refused(stream):
    lock = __import__("threading").Lock()
    with pytest.raises(OptionError, match="must be such that they can be sent to the loader process"):
        next(iter(hr.Loader(stream.map(lambda s: {"x": bool(lock)}), batch_size=4)))


async def not_a_filter(sample):
    return False


def test_functions_and_shapes_that_cannot_work_are_refused_when_given(stream):
    with pytest.raises(OptionError, match="must not be async"):
        stream.filter(not_a_filter)
    with pytest.raises(OptionError, match="the shape of 'x'"):
        stream.map(lambda s: s, shapes={"x": ("float32", (-1,))})
