"""The machines of a launch: how few and how many, and where they meet."""

from __future__ import annotations

import re
from dataclasses import dataclass

from headrace.errors import OptionError

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class Nodes:
    """From `fewest` to `most` machines, on each of which the same command runs; by default this one alone."""

    fewest: int = 1
    most: int = 1
    endpoint: str | None = None
    """host:port, on a machine that stays; None: this machine alone."""

    @classmethod
    def of(cls, text: str, endpoint: str | None) -> Nodes:
        """Of `--nnodes` ("2", or "1:4") and `--rdzv-endpoint`. Raises OptionError for what cannot work."""
        match = re.fullmatch(r"([1-9][0-9]*)(?::([1-9][0-9]*))?", text)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise OptionError(f"--nnodes must be a number of machines, or MIN:MAX such as 1:4: got {text!r}")
        fewest, most = int(match[1]), int(match[2] or match[1])
        if most > 1 and endpoint is None:
            raise OptionError(
                f"several machines need a place to meet: got --nnodes {text}; add --rdzv-endpoint HOST:PORT, the same "
                "on all, a machine that stays"
            )
        if endpoint is not None and (most == 1 or not re.fullmatch(r"\S+:[0-9]+", endpoint)):
            raise OptionError(
                f"--rdzv-endpoint must be HOST:PORT, and goes with --nnodes above 1: got {endpoint!r} and {text}"
            )
        return cls(fewest, most, endpoint)

    def check_resume(self, resume: str) -> None:
        """Raise OptionError for a `--resume` that a machine which comes later could not follow too.

        A launch cannot tell whether it begins a run or joins one, and whoever joins goes on from the run's newest.
        """
        if not self.alone and resume != "auto":
            raise OptionError(
                f"on several machines, which may join a run under way, --resume must be auto: got {resume!r}; to start "
                "anew name an empty folder (--run), to go on from another run begin on one machine"
            )

    @property
    def alone(self) -> bool:
        """Whether there is one machine only."""
        return self.most == 1

    @property
    def here(self) -> bool:
        """Whether all are this machine, so that their processes meet on loopback."""
        return self.endpoint is None or self.endpoint.rpartition(":")[0] in _LOOPBACK
