import sys
from pathlib import Path

import pytest

# The runs that the report's tests read.
sys.path.insert(0, str(Path(__file__).parents[1] / "report"))


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Sinks are fed, and what fails is tried again, at once: tests wait for that, and not for spans of time."""
    monkeypatch.setattr("headrace.sinks.feeding._LOOK_SEC", 0.02)
    monkeypatch.setattr("headrace.sinks.feeding._FIRST_PAUSE_SEC", 0.01)
