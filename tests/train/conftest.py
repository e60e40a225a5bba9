import sys
from pathlib import Path

import pytest

from headrace.rank import set_data_rank

# Test modules and the processes they start share the helpers that lie beside them.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_share_of_the_data_is_left():
    """What a mesh said of this process is not true of the next test's."""
    yield
    set_data_rank(None)
