"""Several machines in one: network namespaces on a bridge, each behind a link of a given delay and rate.

It takes root and iproute2. Where either is missing the test is skipped and says so.
"""

import json
import shutil
import subprocess
import uuid
from contextlib import ExitStack, contextmanager

import pytest

SERVER = "10.77.0.1"
"""Inside the namespaces only: nothing outside them sees these addresses."""
DEVICE = "eth0"


def address(number):
    """Where machine `number` is to be reached."""
    return f"10.77.0.{10 + number}"


@contextmanager
def machines(count, delay_ms, rate):
    """`Machines`: a server's and `count` others. They are gone after the block, however it ends."""
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install iproute2")
    with ExitStack() as stack:
        made = Machines(f"hr-{uuid.uuid4().hex[:8]}", count, delay_ms, stack)
        made.build(rate)
        yield made


class Machines:
    """A switch in the server's namespace, with a cable to each machine, by which what comes is late and throttled."""

    def __init__(self, name, count, delay_ms, stack):
        """`stack` removes the namespaces, and with each what was made in it."""
        self._name, self._count, self._stack = name, count, stack
        self.delay_ms = delay_ms
        self.late_ms = 0
        """What of the delay is left to whoever answers: 0 where the links themselves hold packets up."""

    def build(self, rate):
        self._add("server", skips=True)
        self._in("server", "link", "add", "switch", "type", "bridge", skips=True)
        self._in("server", "addr", "add", f"{SERVER}/24", "dev", "switch")
        self._in("server", "link", "set", "switch", "up")
        for number in range(self._count):
            self._join(number)
            self._shape(f"port{number}", rate)

    def command(self, name, *arguments):
        """What runs a program on the machine "server" or on one of the others, by number."""
        return ["ip", "netns", "exec", self._full(name), *map(str, arguments)]

    def bytes_through(self, number):
        """Bytes that the link to a machine let through, headers included."""
        shown = _run("tc", "-n", self._full("server"), "-s", "-j", "qdisc", "show", "dev", f"port{number}")
        return next(one["bytes"] for one in json.loads(shown) if one.get("root"))

    def _full(self, name):
        return f"{self._name}-{name}"

    def _add(self, name, skips=False):
        _run("ip", "netns", "add", self._full(name), skips=skips)
        self._stack.callback(_run, "ip", "netns", "del", self._full(name))
        self._in(name, "link", "set", "lo", "up")

    def _join(self, number):
        self._add(number)
        ends = (f"port{number}", "type", "veth", "peer", "name", DEVICE, "netns", self._full(number))
        self._in("server", "link", "add", *ends)
        self._in("server", "link", "set", f"port{number}", "master", "switch", "up")
        self._in(number, "addr", "add", f"{address(number)}/24", "dev", DEVICE)
        self._in(number, "link", "set", DEVICE, "up")

    def _shape(self, port, rate):
        """By netem; a kernel without it throttles by tbf, and the delay is left to the server."""
        add = ("tc", "-n", self._full("server"), "qdisc", "add", "dev", port, "root")
        try:
            _run(*add, "netem", "delay", f"{self.delay_ms}ms", "rate", rate, "limit", "100000")
        except AssertionError:
            _run(*add, "tbf", "rate", rate, "burst", "256kb", "latency", "200ms", skips=True)
            self.late_ms = self.delay_ms

    def _in(self, name, *arguments, skips=False):
        return _run("ip", "-n", self._full(name), *arguments, skips=skips)


def _run(*command, skips=False):
    """Run a command; what it printed. Where it `skips`, a refusal is this machine's and no failure."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=60, check=False)
    if done.returncode and skips:
        pytest.skip(f"{' '.join(done.args)} is refused here: {done.stderr.strip()}")
    assert done.returncode == 0, f"{done.args}: {done.stderr}"
    return done.stdout
