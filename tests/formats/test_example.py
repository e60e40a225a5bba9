"""tf.train.Example: read and written as protobuf does it, whatever the bytes are."""

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.formats.tfrecord.example import (
    BYTES,
    FLOATS,
    INTS,
    ExampleError,
    Feature,
    parse_example,
    serialize_example,
)

messages = pytest.importorskip("example_messages", reason="needs the protobuf package", exc_type=ImportError)

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOAT32 = st.floats(width=32)
LISTS = (
    st.tuples(st.just(BYTES), st.lists(st.binary(max_size=20), max_size=4))
    | st.tuples(st.just(FLOATS), st.lists(FLOAT32, max_size=40))
    | st.tuples(st.just(INTS), st.lists(INT64, max_size=40) | st.lists(st.integers(0, 127), max_size=40))
    | st.just((0, []))
)
FEATURES = st.dictionaries(st.text(max_size=10), LISTS, max_size=4)
KINDS = {None: 0, "bytes_list": BYTES, "float_list": FLOATS, "int64_list": INTS}


def plain(features):
    """Features as (kind, values); floats by their bits, so that NaN equals itself."""
    return {name: (kind, [as_bits(value) for value in values]) for name, (kind, values) in features.items()}


def as_bits(value):
    if isinstance(value, memoryview):
        return bytes(value)
    if isinstance(value, float | np.floating):
        return "nan" if math.isnan(value) else struct.pack("<f", value)
    return int(value) if isinstance(value, np.integer) else value


def by_protobuf(data):
    parsed = messages.lists_of(messages.Example.FromString(data))
    return plain({name: (KINDS[kind], values) for name, (kind, values) in parsed.items()})


@given(FEATURES)
def test_what_is_written_comes_back_and_protobuf_reads_the_same(features):
    data, ends = serialize_example({name: Feature(kind, values) for name, (kind, values) in features.items()})
    assert plain(parse_example(memoryview(data))) == plain(features)
    assert by_protobuf(data) == plain(features)
    assert [*ends] == sorted(features)
    assert not features or ends[max(features)] == len(data)


@given(FEATURES)
def test_what_protobuf_writes_is_read(features):
    made = messages.Example()
    for name, (kind, values) in features.items():
        feature = made.features.feature[name]
        if kind:
            target = {BYTES: feature.bytes_list, FLOATS: feature.float_list, INTS: feature.int64_list}[kind]
            target.SetInParent()
            target.value.extend(values)
    data = made.SerializeToString()
    assert plain(parse_example(memoryview(data))) == plain(features)


def test_an_example_has_one_form_whatever_the_order_of_its_features():
    first = {"b": Feature(INTS, [1]), "a": Feature(BYTES, [b"x"])}
    assert serialize_example(first) == serialize_example(dict(reversed(first.items())))


def field(number, wire, value):
    if wire == 2:
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3 | wire) + value


def varint(value):
    out = b""
    while value > 0x7F:
        out += bytes((value & 0x7F | 0x80,))
        value >>= 7
    return out + bytes((value,))


def entry(name, feature):
    return field(1, 2, field(1, 2, field(1, 2, name) + field(2, 2, feature)))


INT_1, INT_2 = field(3, 2, field(1, 2, b"\x01")), field(3, 2, field(1, 2, b"\x02"))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", {}),
        (field(1, 2, b""), {}),
        (entry(b"a", INT_1) + entry(b"a", INT_2), {"a": (INTS, [2])}),  # the last one counts
        (entry(b"a", INT_1 + INT_2), {"a": (INTS, [1, 2])}),  # a list in two parts
        (entry(b"a", INT_1 + field(1, 2, field(1, 2, b"x"))), {"a": (BYTES, [b"x"])}),  # of a oneof the last one
        (entry(b"a", field(3, 2, field(1, 0, b"\x05") + field(1, 0, b"\x06"))), {"a": (INTS, [5, 6])}),  # not packed
        (entry(b"a", field(2, 2, field(1, 5, struct.pack("<f", 0.5)) * 2)), {"a": (FLOATS, [0.5, 0.5])}),
        (entry(b"a", field(3, 2, field(1, 0, b"\x05") + field(1, 2, b"\x06\x07"))), {"a": (INTS, [5, 6, 7])}),
        (field(1, 2, field(1, 2, field(2, 2, INT_1))), {"": (INTS, [1])}),  # no key
        (field(1, 2, field(1, 2, field(1, 2, b"a"))), {"a": (0, [])}),  # no value
        (field(9, 0, b"\x01") + entry(b"a", INT_1) + field(300, 1, bytes(8)), {"a": (INTS, [1])}),  # unknown fields
        (field(1, 2, field(7, 5, bytes(4))) + entry(b"a", field(5, 2, b"?") + INT_1), {"a": (INTS, [1])}),
        (entry(b"a", field(3, 2, field(1, 2, b"\xff" * 9 + b"\x01"))), {"a": (INTS, [-1])}),
        (entry(b"a", field(3, 2, field(1, 2, b"\x81\x80\x00"))), {"a": (INTS, [1])}),  # longer than need be
    ],
)
def test_odd_but_valid_messages_are_read_as_protobuf_reads_them(data, expected):
    assert plain(parse_example(memoryview(data))) == by_protobuf(data) == plain(expected)


@pytest.mark.parametrize("count", [1, 16, 17, 40])
@pytest.mark.parametrize("form", [lambda value: field(1, 0, value), lambda value: value])
def test_lists_of_every_length_are_read_alike(count, form):
    """Few numbers are read one by one, many by numpy; packed or not."""
    numbers = [(-1) ** k * 7**k % 2**63 for k in range(count)]
    raw = [varint(number & (2**64 - 1)) for number in numbers]
    joined = b"".join(map(form, raw))
    data = entry(b"a", field(3, 2, joined if form(b"") else field(1, 2, joined)))
    assert plain(parse_example(memoryview(data))) == by_protobuf(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x0a", "a number without an end"),
        (b"\x0a\x05", "reaches behind the end"),
        (b"\x0b", "wire type 3"),
        (b"\x00\x00", "a field numbered 0"),
        (b"\x08" + b"\xff" * 11, "a number without an end"),
        (b"\xff" * 6, "a number without an end"),
        (entry(b"\xff", INT_1), "name is not UTF-8"),
        (entry(b"a", field(2, 2, field(1, 2, b"abc"))), "a packed list of floats has 3 bytes"),
        (entry(b"a", field(3, 2, field(1, 2, b"\x80"))), "a number without an end"),
        (entry(b"a", field(3, 2, field(1, 2, b"\x80" * 20))), "a number without an end"),
        (entry(b"a", field(3, 2, field(1, 2, b"\x01" * 20 + b"\x80" * 10 + b"\x01"))), "a number without an end"),
        (b"\x08\x01", "it has no features"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "field"),
    ],
)
def test_what_is_no_example_is_said_to_be_none(data, reason):
    with pytest.raises(ExampleError, match=reason):
        parse_example(memoryview(data))


def test_a_sequence_example_is_no_example():
    sequence = messages.SequenceExample()
    sequence.context.feature["a"].int64_list.value.append(1)
    sequence.feature_lists.feature_list["frames"].feature.add().bytes_list.value.append(b"x")
    with pytest.raises(ExampleError, match="SequenceExample"):
        parse_example(memoryview(sequence.SerializeToString()))


VALID = serialize_example(
    {"a": Feature(INTS, [1, -2, 300]), "bc": Feature(BYTES, [b"xyz"]), "f": Feature(FLOATS, [0.5])}
)[0]


@given(st.binary(max_size=40) | st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=4)))
@example(b"\x0a\x0c\x0a\x05\x0a\x01\x61\x12\x00\x0a\x03\x0a\x01\x61")
def test_any_bytes_are_features_or_an_error_and_protobuf_agrees(change):
    """What is read here protobuf reads too, and the same."""
    if isinstance(change, bytes):
        data = change
    else:
        at = change[0] % len(VALID)
        data = VALID[:at] + change[1] + VALID[at + len(change[1]) :]
    try:
        features = parse_example(memoryview(data))
    except ExampleError:
        return
    found = by_protobuf(data)  # which leaves out map entries that hold something unknown
    assert {name: value for name, value in plain(features).items() if name in found} == found
