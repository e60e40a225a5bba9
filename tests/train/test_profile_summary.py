"""What a trace says of idle time, by traces of which that is known."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import OptionError, StorageError
from headrace.train import profile_summary
from headrace.train.profiling import Profile
from headrace.train.profiling.spans import common, length, union, without
from headrace.train.profiling.summary import summarized
from headrace.train.profiling.trace import PART, STEP, name_parts, sorted_trace

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 15)).map(lambda s: (s[0], s[0] + s[1])), max_size=12)


def points(spans):
    return {point for begin, end in spans for point in range(begin, end)}


@given(SPANS, SPANS)
def test_spans_are_sets_of_moments(one, other):
    one, other = union(one), union(other)
    assert points(common(one, other)) == points(one) & points(other)
    assert points(without(one, other)) == points(one) - points(other)
    for spans in (one, list(common(one, other)), list(without(one, other))):
        assert length(spans) == len(points(spans))
        assert spans == sorted(spans)


class Traced:
    """A trace as the profiler writes it, in microseconds."""

    def __init__(self, first=1, last=1):
        self.content = {"headrace": {"rank": 0, "first_step": first, "last_step": last}, "traceEvents": []}
        self.links = 0

    def add(self, category, name, begin, end, thread=1, **args):
        self.content["traceEvents"].append(
            {"ph": "X", "cat": category, "name": name, "pid": 7, "tid": thread, "ts": begin, "dur": end - begin}
            | {"args": args}
        )

    def step(self, number, begin, end):
        self.add("user_annotation", f"{STEP}{number}", begin, end)

    def part(self, name, begin, end):
        self.add("user_annotation", f"{PART}{name}", begin, end)

    def kernel(self, call, begin, end, call_sec=5, name="gemm"):
        """Launched by a call that begins at `call`."""
        self.links += 1
        self.add("cuda_runtime", "cudaLaunchKernel", call, call + call_sec, correlation=self.links)
        self.add("kernel", name, begin, end, thread=20, correlation=self.links)

    def summary(self):
        return summarized(sorted_trace(self.content))


def usec(causes):
    return {name: pytest.approx(sec * 1e6) for name, sec in causes.items()}


def test_a_device_that_waits_for_data_is_told_from_one_that_waits_for_its_queue():
    trace = Traced()
    trace.step(1, 0, 1000)
    trace.part("wait", 0, 500)
    trace.part("compute", 500, 1000)
    trace.kernel(510, 520, 700)
    trace.kernel(530, 704, 1000)  # was there long before the first one ended
    found = trace.summary()
    assert found["device"] == "cuda"
    assert found["idle_sec"] == pytest.approx(524e-6)
    assert {name: sec * 1e6 for name, sec in found["causes_sec"].items()} == pytest.approx(
        {"wait": 500, "launch": 15, "device": 9}
    )
    assert next(iter(found["causes_sec"])) == "wait"
    assert "the device is idle 52 % of the time: 50 % waiting for data" in found["sentence"]
    assert not found["launch_bound"]


def test_kernels_that_are_shorter_than_their_launches_are_launch_bound():
    trace = Traced()
    trace.step(1, 0, 1000)
    trace.part("compute", 0, 1000)
    for begin in range(0, 1000, 10):
        trace.kernel(begin, begin + 6, begin + 9)
    found = trace.summary()
    assert found["launch_bound"]
    assert (found["median_kernel_usec"], found["median_launch_usec"], found["num_kernels"]) == (3, 10, 100)
    assert max(found["causes_sec"], key=found["causes_sec"].get) == "launch"
    assert "kernels take 3 µs and launches come every 10 µs" in found["sentence"]
    assert found["kernels"] == [{"name": "gemm", "calls": 100, "self_sec": pytest.approx(3e-4), "share": 0.3}]


def test_kernels_of_one_launch_are_not_launch_bound():
    """As those of a CUDA graph, which all have the launch's number."""
    trace = Traced()
    trace.step(1, 0, 1000)
    trace.part("compute", 0, 1000)
    for call, number in ((0, 1), (500, 2)):
        trace.add("cuda_runtime", "cudaGraphLaunch", call, call + 5, correlation=number)
        for begin in range(call + 5, call + 495, 5):
            trace.add("kernel", "gemm", begin, begin + 4, thread=20, correlation=number)
    found = trace.summary()
    assert found["median_kernel_usec"] < found["median_launch_usec"]
    assert not found["launch_bound"]
    assert max(found["causes_sec"], key=found["causes_sec"].get) == "device"


def test_the_optimizer_and_parts_of_the_loop_are_causes_by_name():
    trace = Traced()
    trace.step(1, 0, 1000)
    trace.part("compute", 0, 600)
    trace.part("checkpoint", 600, 1000)
    trace.add("user_annotation", "Optimizer.step#AdamW.step", 200, 600)
    trace.kernel(0, 5, 200)
    trace.kernel(590, 595, 600)  # the optimizer's Python took 390
    trace.kernel(990, 995, 1000)
    assert {name: sec * 1e6 for name, sec in trace.summary()["causes_sec"].items()} == pytest.approx(
        {"optimizer": 395, "checkpoint": 395, "launch": 5}
    )


def test_a_gap_after_a_call_that_waits_for_the_device_is_that_calls():
    trace = Traced()
    trace.step(1, 0, 1000)
    trace.part("compute", 0, 1000)
    trace.kernel(0, 5, 500)
    trace.add("cuda_runtime", "cudaStreamSynchronize", 10, 502)  # loss.item()
    trace.kernel(700, 705, 1000)
    found = trace.summary()
    assert {name: sec * 1e6 for name, sec in found["causes_sec"].items()} == pytest.approx({"sync": 205, "launch": 5})
    assert found["syncs"] == [{"name": "cudaStreamSynchronize", "calls": 1, "sec": pytest.approx(492e-6)}]
    assert "20 % having waited for the device" in found["sentence"]


KERNELS = st.lists(st.tuples(st.integers(0, 900), st.integers(0, 80), st.integers(0, 90)), min_size=1, max_size=25)


@given(KERNELS, st.integers(0, 1000), SPANS)
def test_causes_add_up_to_the_idle_time_and_parts_to_the_whole(kernels, turn, syncs):
    trace = Traced()
    trace.step(1, 0, 1000)
    trace.part("wait", 0, turn)
    trace.part("compute", turn, 1000)
    trace.add("user_annotation", "Optimizer.step#SGD.step", (turn + 1000) // 2, 1000)
    for call, late, long in kernels:
        trace.kernel(call, call + late, call + late + long)
    for begin, end in syncs:
        trace.add("cuda_runtime", "cudaDeviceSynchronize", begin, end)
    found = trace.summary()
    busy = points(union((call + late, min(1000, call + late + long)) for call, late, long in kernels))
    assert found["idle_sec"] * 1e6 == pytest.approx(1000 - len(busy))
    assert sum(found["causes_sec"].values()) == pytest.approx(found["idle_sec"])
    assert all(sec > 0 for sec in found["causes_sec"].values())
    assert sum(found["parts_sec"].values()) == pytest.approx(found["wall_sec"])


def test_of_a_cpu_it_says_what_lies_outside_operators_and_which_take_long():
    trace = Traced(first=4, last=5)
    for number, begin in ((4, 0), (5, 1000)):
        trace.step(number, begin, begin + 1000)
        trace.part("wait", begin, begin + 300)
        trace.part("compute", begin + 300, begin + 1000)
        trace.add("cpu_op", "aten::linear", begin + 400, begin + 900)
        trace.add("cpu_op", "aten::addmm", begin + 410, begin + 860)
        trace.add("cpu_op", "aten::copy_", begin + 0, begin + 1000, thread=2)  # another thread's
    found = trace.summary()
    assert (found["device"], found["idle_sec"], found["wall_sec"]) == ("cpu", None, pytest.approx(2e-3))
    assert found["parts_sec"] == pytest.approx({"wait": 6e-4, "compute": 14e-4})
    assert found["outside_operators_sec"] == pytest.approx({"wait": 6e-4, "compute": 4e-4})
    own = {one["name"]: (one["calls"], one["self_sec"]) for one in found["operators"]}
    assert own["aten::linear"] == (2, pytest.approx(1e-4))
    assert own["aten::addmm"] == (2, pytest.approx(9e-4))
    assert found["sentence"].startswith(
        "rank 0, steps 4 to 5, 1 ms each: 50 % of the time lies outside operators (30 % in wait, 20 % in compute)"
    )


def test_parts_get_their_names_in_their_order_on_the_device_too():
    trace = Traced()
    for number, begin in enumerate((300, 0, 700)):  # as threads write them
        trace.add("user_annotation", PART, begin, begin + 100, **{"External id": number})
        trace.add("gpu_user_annotation", PART, begin + 50, begin + 60, **{"External id": number})
    name_parts(trace.content, ["wait", "compute", None])
    named = {(event["cat"], event["ts"]): event["name"] for event in trace.content["traceEvents"]}
    assert named == {
        ("user_annotation", 0): "headrace.wait",
        ("gpu_user_annotation", 50): "headrace.wait",
        ("user_annotation", 300): "headrace.compute",
        ("gpu_user_annotation", 350): "headrace.compute",
    }


def test_a_step_that_was_broken_off_is_no_part_of_it():
    trace = Traced(first=1, last=1)
    trace.step(1, 0, 100)
    trace.part("compute", 0, 100)
    trace.step(2, 100, 900)
    trace.part("compute", 100, 900)
    found = trace.summary()
    assert found["wall_sec"] == pytest.approx(1e-4)
    assert found["parts_sec"] == pytest.approx({"compute": 1e-4})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"[1", "unexpected end of data"),
        (gzip.compress(b"{}")[:-4], "end-of-stream"),
        (b"{}", "is no profile of headrace's"),
    ],
)
def test_what_is_no_profile_is_one_clear_line(tmp_path, content, message):
    path = tmp_path / "a.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match=message) as caught:
        profile_summary(path)
    assert "give a file of RUN/profile/*.json.gz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_plain_file_is_read_too(tmp_path):
    trace = Traced()
    trace.step(1, 0, 10)
    (tmp_path / "a.json").write_text(json.dumps(trace.content))
    assert profile_summary(tmp_path / "a.json")["wall_sec"] == pytest.approx(1e-5)


@pytest.mark.parametrize("steps", [(0, 3), (3, 3), (5, 2), (1.0, 2), (True, 2), (1,), "1:2", 5])
def test_what_are_no_steps_is_refused(steps):
    with pytest.raises(OptionError, match=r"profile must be two steps, .* as 100:110 for steps 100 to 109: got"):
        Profile.of(steps)


def test_all_ranks_trace_nothing_without_steps():
    assert Profile.of(None) is None
    with pytest.raises(OptionError, match="profile_all_ranks says who traces the steps of profile: set that"):
        Profile.of(None, all_ranks=True)


@pytest.mark.parametrize("text", ["", ":", "1", "1:", "a:b", "-1:3", "1:2:3", "1.0:2", "9:3", "0:3"])
def test_text_that_is_no_steps_is_refused(text):
    with pytest.raises(OptionError, match=r"profile must be two steps"):
        Profile.parse(text)


@given(st.integers(1, 10**6), st.integers(1, 1000))
def test_steps_are_read_as_they_are_shown(first, num_steps):
    made = Profile.of((first, first + num_steps))
    assert Profile.parse(str(made)) == made
    made.check_within(first + num_steps - 1)
    with pytest.raises(
        OptionError, match=f"profile must be steps of the run, which has {first + num_steps - 2:,}: got"
    ):
        made.check_within(first + num_steps - 2)


def test_a_trace_that_nothing_opens_is_refused():
    with pytest.raises(OptionError, match=r"must have 1,000 steps at most, .* got 5:1006, which are 1,001"):
        Profile(5, 1006)
