"""Braces: the names that a shell would make of them, and none where there would be too many."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import OptionError
from headrace.storage import expand_braces

WORDS = st.text("abcx-_./", min_size=1, max_size=6)
NUMBERS = st.tuples(st.integers(0, 1200), st.integers(0, 30), st.integers(1, 6), st.integers(1, 6))
RANGES = NUMBERS.map(lambda n: f"{{{n[0]:0{n[2]}d}..{n[0] + n[1]:0{n[3]}d}}}")
LISTS = st.lists(WORDS, min_size=2, max_size=4).map(lambda words: "{" + ",".join(words) + "}")
URLS = st.lists(st.one_of(WORDS, RANGES, LISTS), min_size=1, max_size=5).map("".join)


@pytest.mark.parametrize(
    ("url", "names"),
    [
        ("a-{000..002}.tar", ["a-000.tar", "a-001.tar", "a-002.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{09..11}", ["09", "10", "11"]),
        ("{0..2}", ["0", "1", "2"]),
        ("{8..010}", ["008", "009", "010"]),
        ("{train,val}-{0..1}.tar", ["train-0.tar", "train-1.tar", "val-0.tar", "val-1.tar"]),
        ("s3://b/{x,}y", ["s3://b/xy", "s3://b/y"]),
        ("plain.tar", ["plain.tar"]),
        ("", [""]),
        ("{one}.tar", ["{one}.tar"]),
        ("{a..c}", ["{a..c}"]),
        ("{}", ["{}"]),
        ("odd{.tar", ["odd{.tar"]),
        ("{one}-{0..1}", ["{one}-0", "{one}-1"]),
    ],
)
def test_braces_stand_for_names(url, names):
    assert expand_braces(url) == names


@given(URLS)
def test_the_names_are_those_of_a_shell(url):
    shell = subprocess.run(["bash", "-c", f"printf '%s\\n' {url}"], capture_output=True, text=True, check=True)
    assert expand_braces(url) == shell.stdout.splitlines()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("{5..3}", r"must go up: got \{5\.\.3\}"),
        ("{a,{0..3}}", "must not lie within braces"),
        ("{0..3}}", "must come in pairs"),
        ("{0..9999999}{0..9}", "stands for 100,000,000"),
        ("{0..999999999999999999}" * 50, "10,000,000 names at most"),
    ],
)
def test_what_is_a_slip_is_refused_at_once(url, reason):
    with pytest.raises(OptionError, match=reason):
        expand_braces(url)
