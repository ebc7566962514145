"""nginx shows a certificate that proves nothing, or speaks a TLS that is no longer safe."""

from __future__ import annotations

import datetime
import ssl
import warnings

import aiohttp
import pytest

from tests.whole.faults import naive
from tests.whole.faults.certificates import Authority
from tests.whole.faults.matrix import judge, single, updates
from tests.whole.faults.programs import api, nginx, options

pytestmark = pytest.mark.needs_program("nginx")

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)


@pytest.fixture
def authority(tmp_path):
    (tmp_path / "certificates").mkdir()
    return Authority(tmp_path / "certificates")


FAULTS = {
    "expired": "certificate expired",
    "another host": "certificate for another host",
    "unknown authority": "certificate that nobody vouches for",
}


@pytest.mark.parametrize("what", FAULTS)
async def test_a_server_that_cannot_prove_who_it_is_gets_nothing(table, authority, what):
    """The naive side turns verification off (``ssl=False``), as is advised where a certificate does
    not fit: its token goes to whoever asks.
    """
    certificate = {
        "expired": lambda: authority.issue("localhost", not_after=LONG_AGO),
        "another host": lambda: authority.issue("elsewhere.test"),
        "unknown authority": lambda: authority.issue(
            "localhost", by=Authority(authority.directory)
        ),
    }[what]()
    calls = updates(100, family="TLS")
    with nginx(api(certificate, listen="127.0.0.1:@port ssl")) as server:
        there = options(f"https://localhost:{server.port}")
        told = None
        if naive.RUN:
            await naive.loop(there, calls, request={"ssl": False})
            given_away = sum(line.authorized for line in server.log())
            assert given_away > len(calls)
            told = f"{len(calls)} (with ssl=False: {given_away} secrets given away)"

            verified = await naive.loop(
                there, calls, session={"connector": aiohttp.TCPConnector(ssl=authority.context())}
            )
            assert verified.failures([]) == len(calls)

        before = len(server.log())
        ours = await single({**there, "auth": "basic"}, calls, manager={"ssl": authority.context()})
        judge(ours, [])
        assert ours.errors == {"TransportError": len(calls)}
        assert {end.error.sent for end in ours.ended} == {"no"}
        assert ours.attempts == len(calls)
        assert server.log()[before:] == []
        table.add(FAULTS[what], "single", ours, naive=told)


@pytest.mark.full
async def test_a_server_that_speaks_only_tls_1_1_gets_nothing(table, authority):
    old = f"ssl_protocols TLSv1.1; ssl_ciphers ALL@SECLEVEL=0; {authority.issue('localhost')}"
    calls = updates(50, family="OLD")
    with nginx(api(old, listen="127.0.0.1:@port ssl")) as server:
        there = options(f"https://localhost:{server.port}")
        told = None
        if naive.RUN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
                lax = authority.context()
                lax.minimum_version = ssl.TLSVersion.TLSv1
                lax.set_ciphers("ALL@SECLEVEL=0")
            plain = await naive.loop(
                there, calls, session={"connector": aiohttp.TCPConnector(ssl=lax)}
            )
            assert plain.failures(server.applied()) == 0
            given_away = sum(line.authorized for line in server.log())
            assert given_away > len(calls)
            told = f"{given_away} secrets sent over it, where it is allowed to"

        before = len(server.log())
        ours = await single({**there, "auth": "basic"}, calls, manager={"ssl": authority.context()})
        judge(ours, [])
        assert set(ours.errors) == {"TransportError"}
        assert server.log()[before:] == []
        table.add("TLS 1.1 only", "single", ours, naive=told)
