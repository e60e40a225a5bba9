"""apply, Map and Filter: the user's functions in the chain."""

import functools

import cloudpickle
import numpy as np
import pytest

from headrace.errors import OptionError, TransformError
from headrace.transform import (
    ArraySpec,
    Decode,
    Encoded,
    Filter,
    Map,
    Ragged,
    RandomHorizontalFlip,
    apply,
    as_op,
    output_fields,
    sample_rng,
    spec_of,
)


def no_rng():
    raise AssertionError("no step takes randomness")


def plus_one(sample):
    return {**sample, "x": sample["x"] + 1}


def noisy(sample, rng):
    return {**sample, "x": sample["x"] + rng.random()}


def sample_of(x=1):
    return {"__key__": "k", "x": x}


def test_steps_run_in_order():
    ops = [Map(plus_one), Map(lambda s: {**s, "x": s["x"] * 10})]
    assert apply(ops, sample_of(), no_rng) == {"__key__": "k", "x": 20}


def test_filtered_samples_are_none_and_end_the_chain():
    ops = [Filter(lambda s: s["x"] > 1), Map(plus_one)]
    assert apply(ops, sample_of(1), no_rng) is None
    assert apply(ops, sample_of(2), no_rng) == {"__key__": "k", "x": 3}


def test_one_generator_serves_the_chain_in_turn():
    made = []

    def make():
        made.append(sample_rng(0, 0, 7))
        return made[-1]

    out = apply([Map(noisy), Map(plus_one), Map(noisy)], sample_of(0), make)
    rng = sample_rng(0, 0, 7)
    assert len(made) == 1
    assert out["x"] == pytest.approx(1 + rng.random() + rng.random())


def test_callers_dict_is_left_alone():
    def spoil(sample):
        sample["x"] = None
        return sample

    sample = sample_of()
    apply([Filter(spoil), Map(spoil)], sample, no_rng)
    assert sample == {"__key__": "k", "x": 1}


def test_key_stays_with_the_sample():
    assert apply([Map(lambda s: {"y": 2})], sample_of(), no_rng) == {"y": 2, "__key__": "k"}


class Callable1:
    def __call__(self, sample):
        return sample


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (plus_one, False),
        (noisy, True),
        (lambda s, r: s, True),
        (lambda s, scale=2: s, False),
        (lambda s, rng=None: s, True),
        (lambda s, rng, scale=2: s, True),
        (lambda *args: args, False),
        (functools.partial(noisy, rng=None), False),
        (functools.partial(lambda scale, s, rng: s, 2), True),
        (Callable1(), False),
        (dict, False),
    ],
)
def test_signature_says_whether_rng_is_taken(fn, expected):
    assert Map(fn).takes_rng is expected


@pytest.mark.parametrize("fn", [lambda: 1, lambda a, b, c: 1, lambda s, *, k: 1, 3])
def test_other_signatures_are_refused(fn):
    with pytest.raises(OptionError, match=r"fn\(sample\) or fn\(sample, rng\)"):
        Map(fn)


def test_errors_name_the_function_and_keep_the_cause():
    def divide(sample):
        return sample["x"] / 0

    with pytest.raises(
        TransformError, match=r"function .*divide \(.*test_chain\.py:\d+\) failed: ZeroDivisionError"
    ) as info:
        apply([Map(divide)], sample_of(), no_rng)
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    with pytest.raises(TransformError, match=r"filter .*divide"):
        apply([Filter(divide)], sample_of(), no_rng)
    with pytest.raises(TransformError, match="must return a dict of fields: got int"):
        apply([Map(lambda s: 3)], sample_of(), no_rng)


def test_error_is_one_line():
    def fail(sample):
        raise ValueError("first\nsecond")

    with pytest.raises(TransformError) as info:
        apply([Map(fail)], sample_of(), no_rng)
    assert "\n" not in str(info.value)


def test_fields_are_unknown_behind_a_function_without_shapes():
    fields = {"jpg": Encoded(), "cls": Encoded()}
    assert output_fields([Decode(), Map(plus_one)], fields) == {}
    declared = Map(plus_one, shapes={"jpg": ("float32", (3, 8, 8)), "n": ("int64", (None,)), "note": None})
    assert output_fields([Decode(), declared], fields) == {
        "jpg": ArraySpec("float32", (3, 8, 8)),
        "n": Ragged("int64", (None,)),
        "note": None,
        "cls": ArraySpec("int64", ()),
    }


@pytest.mark.parametrize("shape", [3, ("no such dtype", (1,)), ("float32", 3), ("float32",)])
def test_shapes_that_make_no_sense_are_refused(shape):
    with pytest.raises(OptionError):
        Map(plus_one, shapes={"x": shape}).output_fields({})


def test_own_steps_are_not_wrapped():
    step = RandomHorizontalFlip()
    assert as_op(step) is step
    assert as_op(plus_one) == Map(plus_one)


def test_chain_with_lambdas_and_closures_travels():
    offset = 41
    ops = cloudpickle.loads(
        cloudpickle.dumps([Decode(), Map(lambda s: {**s, "x": s["x"] + offset}), Filter(lambda s: True)])
    )
    assert apply(ops, sample_of(), no_rng)["x"] == 42


@pytest.mark.parametrize(
    ("value", "spec"),
    [
        (np.zeros((2, 3), np.float32), ArraySpec("float32", (2, 3))),
        (np.float16(1), ArraySpec("float16", ())),
        (True, ArraySpec("bool", ())),
        (3, ArraySpec("int64", ())),
        (0.5, ArraySpec("float64", ())),
        ("text", None),
        (b"bytes", None),
        (None, None),
        (np.array(["a"]), None),
        (np.array([{}]), None),
    ],
)
def test_spec_of_real_values(value, spec):
    assert spec_of(value) == spec
