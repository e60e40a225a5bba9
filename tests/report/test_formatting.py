"""Numbers as people read them."""

import pytest

from headrace.report import formatting as fmt


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"),
        (0.0000021, "2.10 µs"),
        (0.0032, "3.20 ms"),
        (0.999, "999 ms"),
        (12.44, "12.4 s"),
        (99.97, "1 min 40 s"),
        (119.8, "2 min"),
        (310, "5 min 10 s"),
        (7500, "2 h 5 min"),
        (273_600, "3 d 4 h"),
        (None, "–"),  # noqa: RUF001
        (float("nan"), "–"),  # noqa: RUF001
    ],
)
def test_seconds(value, text):
    assert fmt.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.0123449, "0.01234"),
        (1234.5, "1,234"),
        (123456, "123,456"),
        (1.23e-5, "1.23e-05"),
        (-2.5, "-2.500"),
        (3e12, "3e+12"),
    ],
)
def test_number(value, text):
    assert fmt.number(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5"), (20, "20"), (1000, "1,000"), (0.003, "0.003"), (0, "0")])
def test_tick(value, text):
    assert fmt.tick(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(999, "999 B"), (117_300, "117 KB"), (2_100_000_000, "2.10 GB"), (None, "–")],  # noqa: RUF001
)
def test_num_bytes(value, text):
    assert fmt.num_bytes(value) == text


@pytest.mark.parametrize(("share", "text"), [(0.411, "41 %"), (0.032, "3.2 %"), (0, "0 %"), (1, "100 %")])
def test_percent(share, text):
    assert fmt.percent(share) == text
