"""Which SSH servers are trusted: those in the files that `ssh` itself keeps.

The default of fsspec's SFTP is to trust any server that answers, which lets whoever sits on the way read and change
everything. Here a server must be known, as for `ssh` with StrictHostKeyChecking.
"""

from __future__ import annotations

from pathlib import Path

from paramiko import HostKeys, MissingHostKeyPolicy, PKey, SSHClient

from headrace.storage.store import Refused

_FILES = (Path("~/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))


class KnownHosts(MissingHostKeyPolicy):  # type: ignore[misc]  # paramiko ships no types
    """Accepts a server whose key is in known_hosts; raises Refused for any other."""

    def missing_host_key(self, client: SSHClient, hostname: str, key: PKey) -> None:
        """Called by paramiko, which has looked nowhere yet."""
        for path in _FILES:
            path = path.expanduser()
            if path.exists() and HostKeys(str(path)).check(hostname, key):
                return
        raise Refused(
            f"the SSH server {hostname} is not in ~/.ssh/known_hosts, or has another key: connect by ssh once"
        )
