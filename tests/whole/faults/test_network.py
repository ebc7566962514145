"""The network between: refused, reset, black holes, a dead address, a narrow link. The server is
nginx in a namespace, over TLS.
"""

from __future__ import annotations

import asyncio
import socket
import time

import aiohttp
import pytest
from aiohttp.abc import AbstractResolver

from tests.whole.faults import naive
from tests.whole.faults.certificates import Authority
from tests.whole.faults.matrix import bulk, judge, judge_bulk, meanwhile, single, updates
from tests.whole.faults.network import DEAD, SERVER, network
from tests.whole.faults.programs import Nginx, api, nginx, options

pytestmark = [pytest.mark.needs_program("nginx", "nft", "ip")]

NAME = "service.test"


class Addresses(AbstractResolver):
    """Every name has these addresses, in this order."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(self, host="", port=0, family=socket.AF_INET):
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET,
                "proto": 0,
                "flags": 0,
            }
            for address in self._addresses
        ]

    async def close(self):
        pass


@pytest.fixture
def authority(tmp_path):
    (tmp_path / "certificates").mkdir()
    return Authority(tmp_path / "certificates")


def served(authority: Authority) -> str:
    return api(f"ssl_protocols TLSv1.2 TLSv1.3; {authority.issue(NAME)}", listen="@port ssl")


class Place:
    """The server in its namespace, and what reaches it."""

    def __init__(
        self, server: Nginx, authority: Authority, addresses: tuple[str, ...] = (SERVER,)
    ) -> None:
        self.server = server
        self.options = options(f"https://{NAME}")
        self.authority = authority
        self.addresses = addresses

    @property
    def manager(self):
        return {"ssl": self.authority.context(), "resolver": Addresses(*self.addresses)}

    @property
    def session(self):
        return {
            "connector": aiohttp.TCPConnector(
                ssl=self.authority.context(), resolver=Addresses(*self.addresses)
            ),
        }

    def applied(self, calls):
        wanted = {message_id for message_id, _ in calls}
        return {message_id for message_id in self.server.applied() if message_id in wanted}


FAULTS = {
    "refuse": "connections refused and reset for 1 s",
    "vanish": "packets dropped for 1.5 s",
}


@pytest.mark.parametrize("what", FAULTS)
async def test_a_network_that_is_gone_and_comes_back_costs_a_job_nothing(table, authority, what):
    rate = 200
    with (
        network() as net,
        nginx(served(authority), before=net.inside, host=SERVER, port=443) as server,
    ):
        place = Place(server, authority)

        async def fault() -> float:
            await asyncio.sleep(0.5)
            getattr(net, what)()
            await asyncio.sleep(1.0 if what == "refuse" else 1.5)
            net.heal()
            return time.monotonic()

        bitten = None
        if naive.RUN:
            calls = updates(700, family="NAIVE")
            session = {**place.session, "timeout": aiohttp.ClientTimeout(total=0.5)}
            plain, _ = await meanwhile(
                naive.loop(place.options, calls, session=session, rate=rate, concurrency=500),
                fault(),
            )
            bitten = plain.failures(place.applied(calls))
            assert bitten

        impatient = {**place.options, "attempt_timeout": 0.5}
        calls = updates(700, family="JOB")
        job, restored = await meanwhile(
            bulk(impatient, calls, manager=place.manager, rate=rate), fault()
        )
        judge_bulk(job, place.applied(calls), exempt=50)
        table.add(FAULTS[what], "bulk", job, naive=bitten, recovery=job.recovered(restored))

        calls = updates(700, family="SINGLE")
        ours, restored = await meanwhile(
            single(impatient, calls, manager=place.manager, rate=rate, concurrency=500), fault()
        )
        judge(ours, place.applied(calls), exempt=500)
        assert set(ours.errors) <= {"TransportError", "CallTimeoutError"}
        table.add(FAULTS[what], "single", ours, naive=bitten, recovery=ours.recovered(restored))


@pytest.mark.parametrize("dead", ["refuses", "is silent"])
async def test_the_first_of_two_addresses_that_is_dead_costs_no_call(table, authority, dead):
    """A plain client with one address is what a service behind a dead one gets; with both, the
    second is tried.
    """
    with (
        network() as net,
        nginx(served(authority), before=net.inside, host=SERVER, port=443) as server,
    ):
        if dead == "is silent":
            net.drop_dead("drop")
        else:
            net.drop_dead("reject with tcp reset")

        place = Place(server, authority, (DEAD, SERVER))
        told = None
        if naive.RUN:
            calls = updates(200, family="NAIVE")
            alone = Place(server, authority, (DEAD,))
            session = {**alone.session, "timeout": aiohttp.ClientTimeout(total=1)}
            plain = await naive.loop(place.options, calls, session=session, patience=5)
            bitten = plain.failures(place.applied(calls))
            assert bitten == len(calls)
            told = f"{bitten} (with that address alone)"

        calls = updates(200, family="SINGLE")
        ours = await single(place.options, calls, manager=place.manager)
        judge(ours, place.applied(calls))
        assert not ours.errors
        table.add(f"first of two addresses {dead}", "single", ours, naive=told)


@pytest.mark.full
async def test_a_narrow_link_costs_a_job_nothing(table, authority):
    """512 kbit/s each way: the handshakes of 50 connections alone take seconds."""
    with (
        network() as net,
        nginx(served(authority), before=net.inside, host=SERVER, port=443) as server,
    ):
        place = Place(server, authority)
        net.narrow("512kbit")

        bitten = None
        if naive.RUN:
            calls = updates(1500, family="NAIVE")
            session = {**place.session, "timeout": aiohttp.ClientTimeout(total=10)}
            plain = await naive.loop(place.options, calls, session=session, concurrency=1500)
            bitten = plain.failures(place.applied(calls))
            assert bitten

        calls = updates(1500, family="JOB")
        job = await bulk(place.options, calls, manager=place.manager, patience=200)
        judge_bulk(job, place.applied(calls))
        table.add("a link of 512 kbit/s", "bulk", job, naive=bitten)
