"""Others' files that the page carries are theirs to the byte, and come with their licence."""

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest
from run_files import RunFile

from headrace.report import write_page

UPLOT = files("headrace.report").joinpath("vendor/uplot")
VERSION = "1.6.32"
# Of `npm pack uplot@1.6.32`.
SHA256 = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


@pytest.mark.parametrize("name", SHA256)
def test_files_are_unmodified(name):
    assert hashlib.sha256(UPLOT.joinpath(name).read_bytes()).hexdigest() == SHA256[name]


def test_nothing_else_is_vendored_and_the_version_is_the_one_that_is_told():
    assert {path.name for path in UPLOT.iterdir()} == set(SHA256)
    assert f"(v{VERSION})" in UPLOT.joinpath("uPlot.iife.min.js").read_text("utf-8")[:200]
    readme = Path(str(UPLOT)).parent.joinpath("README.md").read_text("utf-8")
    assert f"uplot@{VERSION}" in readme


def test_a_page_carries_the_licence_of_what_it_carries(tmp_path):
    RunFile(tmp_path).start()
    page = write_page(tmp_path).read_text("utf-8")
    assert UPLOT.joinpath("LICENSE").read_text("utf-8") in page
    assert UPLOT.joinpath("uPlot.iife.min.js").read_text("utf-8") in page
