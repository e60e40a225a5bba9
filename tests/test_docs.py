"""What the documentation shows is true: the Python blocks of a page run, in order, in one namespace.

A page's blocks run in a process of their own, in an empty folder. A block right after a comment such as
`<!-- no-test: needs a GPU -->` is left out, and the reason shows in the test's output. Other languages are not run.

A page that begins with a comment such as `<!-- servers: s3 web -->` finds those servers: its bucket is a bucket of a
real one, and https://data.example.org shows the folder that it runs in. One that begins with
`<!-- programs: ffmpeg -->` is skipped where such a program is missing, one with `<!-- packages: tensorboard -->` where
such a package is.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if path.is_file())

_BLOCK = re.compile(
    r"(?:<!--\s*no-test:\s*(?P<reason>[^>]*?)\s*-->\s*\n)?"
    r"^(?P<indent> *)```(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```\s*$",
    re.M | re.S,
)


def python_blocks(text):
    """(line of the first statement, code, reason not to run it) of every Python block."""
    for block in _BLOCK.finditer(text):
        if block["language"] in ("python", "py"):
            line = text.count("\n", 0, block.start("code")) + 1
            code = re.sub(f"^{block['indent']}", "", block["code"], flags=re.M)
            yield line, code, block["reason"]


def served(text, request, folder):
    """The page with places on running servers for those that it names, and the folder to run it in."""
    found = re.match(r"<!--\s*servers:\s*([\w ]+?)\s*-->", text)
    for name in found[1].split() if found else ():
        server = request.getfixturevalue(name)
        if name == "web":
            text, folder = text.replace("https://data.example.org", server.place.text), server.folder
        else:
            text = text.replace(f"{server.scheme}://bucket", server.text)
    return text, folder


def skip_without_programs(text):
    found = re.match(r"<!--\s*programs: ([\w ]+?)\s*-->", text)
    for name in found[1].split() if found else ():
        if shutil.which(name) is None:
            pytest.skip(f"needs {name} (apt-get install {name})")


def skip_without_packages(text):
    found = re.match(r"<!--\s*packages: ([\w ]+?)\s*-->", text)
    for name in found[1].split() if found else ():
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs the package {name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_of_a_page_runs(page, tmp_path, request):
    """Each block keeps its line numbers, so that a traceback points into the page."""
    skip_without_programs(page.read_text("utf-8"))
    skip_without_packages(page.read_text("utf-8"))
    text, folder = served(page.read_text("utf-8"), request, tmp_path)
    blocks = list(python_blocks(text))
    script = "namespace = {'__name__': '__main__'}\n"
    for line, code, reason in blocks:
        if reason is not None:
            print(f"{page.name}:{line} is not run: {reason or 'no reason given'}")
            assert reason, f"{page.name}:{line}: say why it is not run: <!-- no-test: reason -->"
            continue
        padded = "\n" * (line - 1) + code
        script += f"exec(compile({padded!r}, {str(page)!r}, 'exec'), namespace)\n"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, f"{page.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_blocks_are_found_with_their_lines_and_reasons():
    text = (
        "a\n```python\nx = 1\n```\n\n<!-- no-test: needs a GPU -->\n```python\ny\n```\n"
        "```sh\nls\n```\n- b\n  ```py\n  z = 2\n  ```\n"
    )
    assert list(python_blocks(text)) == [(3, "x = 1\n", None), (8, "y\n", "needs a GPU"), (15, "z = 2\n", None)]
