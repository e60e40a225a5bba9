"""Which first steps make the same of a sample every time, and what tells them from others."""

import os
import subprocess
import sys

from headrace.transform import (
    Cast,
    CenterCrop,
    Decode,
    Filter,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    as_op,
    describe_steps,
    lasting_steps,
    may_write_arrays,
)


def same(sample):
    return sample


class Larger(Resize):
    """A user's own step, of which nothing is known."""


def test_steps_last_up_to_the_first_that_may_differ_or_swell():
    steps = (Decode(), Resize(256), CenterCrop(224))
    assert lasting_steps(steps) == steps
    for other in (
        RandomResizedCrop(8),
        RandomHorizontalFlip(),
        Normalize(0.5, 0.5),
        Cast.of({"x": "float32"}),
        as_op(same),
        Filter(same),
        Larger(8),
    ):
        assert lasting_steps((*steps[:2], other, *steps)) == steps[:2]
        assert lasting_steps((other, *steps)) == ()
    assert lasting_steps(()) == lasting_steps((Resize(8),)) == ()


def test_only_steps_of_others_may_write_into_arrays():
    assert not may_write_arrays(
        (Decode(), Resize(8), RandomResizedCrop(8), RandomHorizontalFlip(), Normalize(0.5, 0.5))
    )
    for other in (as_op(same), Filter(same), Larger(8)):
        assert may_write_arrays((Decode(), other))


def test_a_description_tells_parameters_apart():
    steps = [
        (Decode(),),
        (Decode("gray"),),
        (Decode("rgb", frozenset("ab")),),
        (Decode(), Resize(8)),
        (Decode(), Resize(9)),
    ]
    assert len({describe_steps(one) for one in steps}) == len(steps)


def test_a_description_is_the_same_in_every_process():
    """Sets of names, whose order is not."""
    code = (
        "from headrace.transform import Decode, describe_steps\n"
        "print(describe_steps([Decode('rgb', frozenset(['a', 'b', 'c', 'jpg', 'png', 'x.y']))]))"
    )
    shown = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(shown) == 1
