from __future__ import annotations

import pytest

from headrace.errors import OptionError
from headrace.train.mesh import check_mesh, parse_mesh


@pytest.mark.parametrize(("text", "axes"), [("dp", {"dp": None}), ("dp=2", {"dp": 2}), (" dp = 16 ", {"dp": 16})])
def test_a_mesh_is_axes_and_sizes(text, axes):
    assert parse_mesh(text) == axes


@pytest.mark.parametrize("text", ["", "dp=0", "dp=-1", "dp=2,dp=2", "fsdp=2", "dp=2,tp=2", "2", "dp=two", "auto"])
def test_what_this_release_cannot_do_is_refused(text):
    with pytest.raises(OptionError, match=r"mesh must be 'dp' or 'dp=N'.*got"):
        parse_mesh(text)


def test_the_sizes_must_multiply_to_the_number_of_processes():
    check_mesh("dp", 3)
    check_mesh("dp=3", 3)
    with pytest.raises(OptionError, match="got mesh='dp=2' on 3; say mesh='dp', or start 2 processes"):
        check_mesh("dp=2", 3)
