"""A proxy between: tinyproxy that asks for credentials or dies, and a script that breaks off in the
middle of CONNECT.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import aiohttp
import pytest

from tests.servers import Peer, Server
from tests.whole.faults import naive
from tests.whole.faults.certificates import Authority
from tests.whole.faults.matrix import bulk, judge, judge_bulk, meanwhile, single, updates
from tests.whole.faults.programs import Tinyproxy, api, nginx, options, tinyproxy

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.needs_program("nginx", "tinyproxy")


@pytest.fixture
def authority(tmp_path):
    (tmp_path / "certificates").mkdir()
    return Authority(tmp_path / "certificates")


@contextlib.contextmanager
def service(authority: Authority) -> Iterator[tuple[object, dict[str, object]]]:
    """An nginx that speaks TLS, so that it is reached through a tunnel, and closes no connection by
    itself.
    """
    with nginx(api(authority.issue("localhost"), listen="127.0.0.1:@port ssl")) as server:
        yield server, options(f"https://localhost:{server.port}")


def plainly(authority: Authority, proxy: str) -> dict[str, object]:
    return {
        "session": {"connector": aiohttp.TCPConnector(ssl=authority.context())},
        "request": {"proxy": proxy},
    }


async def test_a_proxy_that_dies_and_comes_back_costs_a_job_nothing(table, authority):
    calls = updates(600, family="PROXY")

    async def die(proxy: Tinyproxy) -> float:
        await asyncio.sleep(0.5)
        proxy.kill()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(proxy.start)
        return time.monotonic()

    bitten = None
    if naive.RUN:
        with service(authority) as (server, there), tinyproxy() as proxy:
            plain, _ = await meanwhile(
                naive.loop(there, calls, rate=300, **plainly(authority, proxy.url)), die(proxy)
            )
            bitten = plain.failures(server.applied())
            assert bitten

    manager = {"ssl": authority.context()}
    for how in ("bulk", "single"):
        with service(authority) as (server, there), tinyproxy() as proxy:
            run = bulk if how == "bulk" else single
            side, restored = await meanwhile(
                run(there, calls, rate=300, manager={**manager, "proxy": proxy.url}), die(proxy)
            )
            (judge_bulk if how == "bulk" else judge)(side, server.applied(), exempt=50)
            assert proxy.connects() > 0
            table.add(
                "proxy killed, back after 0.5 s",
                how,
                side,
                naive=bitten,
                recovery=side.recovered(restored),
            )


async def test_a_proxy_that_asks_for_credentials_gets_them_or_is_told_apart_from_the_service(
    table, authority
):
    calls = updates(100, family="PROXYAUTH")
    with service(authority) as (server, there), tinyproxy("BasicAuth somebody something") as proxy:
        bitten = None
        if naive.RUN:
            plain = await naive.loop({**there}, calls, **plainly(authority, proxy.url))
            bitten = plain.failures(server.applied())
            assert bitten == len(calls)

        manager = {"ssl": authority.context()}
        refused = await single(
            {**there, "auth": "basic"}, calls, manager={**manager, "proxy": proxy.url}
        )
        judge(refused, server.applied())
        assert refused.errors == {"TransportError": len(calls)}
        assert refused.attempts == len(calls)
        assert server.log() == []
        table.add("proxy asks for credentials, none given", "single", refused, naive=bitten)

        with_them = f"http://somebody:something@127.0.0.1:{proxy.port}"
        ours = await single(there, calls, manager={**manager, "proxy": with_them})
        judge(ours, server.applied())
        assert not ours.errors
        table.add("proxy asks for credentials, given", "single", ours, naive=bitten)


async def test_a_proxy_that_breaks_off_in_the_middle_of_connect_costs_a_job_nothing(
    table, authority
):
    """Every third tunnel is cut off in the middle of the proxy's answer, every third after it."""
    calls = updates(300, family="CONNECT")

    with service(authority) as (server, there):
        number = 0

        async def script(peer: Peer) -> None:
            nonlocal number
            await peer.reader.readuntil(b"\r\n\r\n")
            number += 1
            if number % 3 == 0:
                await peer.send(b"HTTP/1.1 200 Con")
                return
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
            if number % 3 == 1 and number > 1:
                writer.close()
                return
            try:
                await asyncio.gather(pipe(peer.reader, writer), pipe(reader, peer.writer))
            finally:
                writer.transport.abort()

        bitten = None
        if naive.RUN:
            async with Server(script) as proxy:
                plain = await naive.loop(there, calls, **plainly(authority, proxy.origin))
                bitten = plain.failures(server.applied())
                assert bitten

        number = 0
        before = len(server.log())
        async with Server(script) as proxy:
            job = await bulk(
                there, calls, manager={"ssl": authority.context(), "proxy": proxy.origin}
            )
            applied = {line.message_id for line in server.log()[before:] if line.status == 200}
            judge_bulk(job, applied)
            table.add("proxy breaks off two of three CONNECTs", "bulk", job, naive=bitten)


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
