"""A network of our own: a namespace with a server in it, a cable to it, and what can be done to the
packets.

Everything lives in the namespace, nothing is changed on the machine but for one virtual interface,
and all of it is gone afterwards. Needs to be root, or sudo that asks nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of the block that RFC 2544 (and RFC 6890) sets apart for tests between networks: nobody's LAN.
CLIENT, SERVER, DEAD = "198.18.77.1", "198.18.77.2", "198.18.77.3"

ROOT = () if os.getuid() == 0 else ("sudo", "-n")


def run(*command: str) -> None:
    done = subprocess.run([*ROOT, *command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"


@attrs.frozen
class Network:
    """``CLIENT`` is this end of the cable; ``SERVER`` and ``DEAD`` are addresses in the namespace;
    ``DEAD`` is for a test to cut off.
    """

    namespace: str

    @property
    def inside(self) -> tuple[str, ...]:
        """What a command is put behind to run in the namespace."""
        return (*ROOT, "ip", "netns", "exec", self.namespace)

    def rule(self, verdict: str) -> None:
        """From now on, what becomes of packets that arrive for the server: one of nftables'
        verdicts.
        """
        run(*self.inside, "nft", "flush", "chain", "inet", "faults", "arriving")
        run(
            *self.inside,
            "nft",
            "add",
            "rule",
            "inet",
            "faults",
            "arriving",
            "ip",
            "daddr",
            SERVER,
            "tcp",
            "dport",
            "443",
            *verdict.split(),
        )

    def vanish(self) -> None:
        """Packets are dropped, and nobody says so."""
        self.rule("drop")

    def refuse(self) -> None:
        """New connections are refused, and those that are there are reset."""
        self.rule("reject with tcp reset")

    def heal(self) -> None:
        self.rule("accept")

    def drop_dead(self, verdict: str) -> None:
        """What becomes of packets for ``DEAD``, where nginx would listen as well: ``drop``,
        ``reject with tcp reset``.
        """
        dead = ("ip", "daddr", DEAD, "tcp", "dport", "443")
        run(*self.inside, "nft", "add", "rule", "inet", "faults", "dead", *dead, *verdict.split())

    def narrow(self, rate: str) -> None:
        """Lets through so much a second in both directions (tbf), a queue of 400 ms before it."""
        for where in (
            (*self.inside, "tc", "qdisc", "add", "dev", "inside"),
            ("tc", "qdisc", "add", "dev", self.namespace),
        ):
            run(*where, "root", "tbf", "rate", rate, "burst", "8kb", "latency", "400ms")


@contextlib.contextmanager
def network() -> Iterator[Network]:
    name = f"faults{os.getpid() % 1_000_000}"
    made = Network(name)
    try:
        run("ip", "netns", "add", name)
        run("ip", "link", "add", name, "type", "veth", "peer", "name", "inside", "netns", name)
        run("ip", "addr", "add", f"{CLIENT}/24", "dev", name)
        run("ip", "link", "set", name, "up")
        for command in (
            "link set lo up",
            f"addr add {SERVER}/24 dev inside",
            f"addr add {DEAD}/24 dev inside",
            "link set inside up",
        ):
            run("ip", "-n", name, *command.split())
        run(*made.inside, "nft", "add", "table", "inet", "faults")
        for chain in ("arriving", "dead"):
            run(
                *made.inside,
                "nft",
                "add",
                "chain",
                "inet",
                "faults",
                chain,
                "{ type filter hook input priority 0; }",
            )
        yield made
    finally:
        # The cable goes with either of its ends; what was never made is not missed.
        for command in (["ip", "link", "del", name], ["ip", "netns", "del", name]):
            subprocess.run([*ROOT, *command], capture_output=True)
