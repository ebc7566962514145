"""nginx sends the update to another origin."""

from __future__ import annotations

import pytest

from tests.whole.faults import naive
from tests.whole.faults.matrix import judge, single, updates
from tests.whole.faults.programs import api, free_port, nginx

pytestmark = pytest.mark.needs_program("nginx")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_told_and_never_followed(table, status):
    """Followed, 301, 302 and 303 make a GET of it, whose 200 looks like success, and 307 and 308
    carry the update to a stranger.
    """
    calls = updates(100, family=f"REDIRECT{status}")
    elsewhere = free_port()
    servers = api(update=f"return {status} http://127.0.0.1:{elsewhere}$request_uri;") + api(
        listen=f"127.0.0.1:{elsewhere}"
    )
    with nginx(servers) as server:
        told = None
        if naive.RUN:
            plain = await naive.loop(server.options, calls)
            bitten = plain.failures(server.applied(port=server.port))
            fooled = sum(end.succeeded for end in plain.ended)
            assert fooled == bitten == len(calls)
            told = f"{bitten} (taken for success)"

        followed = len(server.log())
        ours = await single(server.options, calls)
        judge(ours, server.applied(port=server.port))
        assert ours.errors == {"ResponseFormatError": len(calls)}
        assert ours.attempts == len(calls)
        assert not [line for line in server.log()[followed:] if line.port == elsewhere]
        table.add(f"{status} to another origin", "single", ours, naive=told)
