"""A token endpoint that is slow, broken, strict or careless, and tokens that stop working midway.
The sandbox keeps the count of what it was asked.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time

import pytest

from sinch_conv_async.sandbox import Sandbox
from tests.whole.faults import naive
from tests.whole.faults.matrix import bulk, judge, judge_bulk, meanwhile, single, updates
from tests.whole.faults.programs import UPDATED, free_port, listening, nginx, stop

FAULTS = {
    "slow": "token endpoint takes 0.2 s, 1,000 callers at once",
    "500": "token endpoint: three times 500",
    "429": "token endpoint: three times 429",
    "no expires_in": "token answer without expires_in",
}


def trouble(sandbox: Sandbox, what: str) -> None:
    if what == "slow":
        sandbox.delay_next_token(0.2, times=1000)
    elif what == "no expires_in":
        sandbox.answer_next_token(
            {"access_token": "made-up-token", "token_type": "bearer"}, times=1000
        )
    else:
        sandbox.fail_next_token(int(what), times=3)


def applied(sandbox: Sandbox):
    return {request.message_id for request in sandbox.requests if request.applied}


@pytest.mark.parametrize("what", FAULTS)
async def test_a_token_endpoint_in_trouble_costs_no_call(table, what):
    calls = updates(1000, family="TOKEN")
    told = None
    if naive.RUN:
        async with Sandbox(auto_create=True) as sandbox:
            trouble(sandbox, what)
            plain = await naive.cached(dict(sandbox.client_options()), calls, concurrency=1000)
            bitten = plain.failures(applied(sandbox))
            assert bitten
            told = f"{bitten:,} ({len(sandbox.token_requests):,} token requests)"

    async with Sandbox(auto_create=True) as sandbox:
        trouble(sandbox, what)
        ours = await single(dict(sandbox.client_options()), calls, concurrency=1000)
        judge(ours, applied(sandbox))
        assert not ours.errors
        assert len(sandbox.token_requests) <= 4
        table.add(
            FAULTS[what],
            "single",
            ours,
            naive=told,
            ours=f"0 ({len(sandbox.token_requests)} token requests)",
        )


async def test_a_key_that_is_refused_fails_every_call_for_the_price_of_one(table):
    calls = updates(1000, family="INVALID")
    told = None
    if naive.RUN:
        async with Sandbox(auto_create=True) as sandbox:
            wrong = {**sandbox.client_options(), "key_secret": "another"}
            plain = await naive.cached(wrong, calls, concurrency=1000)
            assert plain.failures(applied(sandbox)) == len(calls)
            told = f"{len(calls):,} ({len(sandbox.token_requests):,} token requests)"

    async with Sandbox(auto_create=True) as sandbox:
        wrong = {**sandbox.client_options(), "key_secret": "another"}
        ours = await single(wrong, calls, concurrency=1000)
        judge(ours, applied(sandbox))
        assert ours.errors == {"TokenError": len(calls)}
        assert len(sandbox.token_requests) == 1
        table.add(
            "invalid_client, 1,000 callers at once",
            "single",
            ours,
            naive=told,
            ours="1,000 (TokenError 1,000; 1 token request)",
        )


async def test_tokens_that_are_revoked_midway_cost_a_job_nothing(table):
    calls = updates(900, family="REVOKED")

    async def revoke(sandbox: Sandbox, *, renewed: bool = True) -> float:
        for number, form in enumerate(("revoke_tokens", "expire_tokens", "revoke_tokens"), 1):
            await sandbox.wait_for_requests(250 * number)
            if renewed:
                await sandbox.wait_for_token_requests(number)
            getattr(sandbox, form)()
        return time.monotonic()

    bitten = None
    if naive.RUN:
        async with Sandbox(auto_create=True) as sandbox:
            plain, _ = await meanwhile(
                naive.loop(dict(sandbox.client_options()), calls, rate=400),
                revoke(sandbox, renewed=False),
            )
            bitten = plain.failures(applied(sandbox))
            assert bitten
    for how in ("bulk", "single"):
        async with Sandbox(auto_create=True, latency=0.01) as sandbox:
            run = bulk if how == "bulk" else single
            side, restored = await meanwhile(
                run(dict(sandbox.client_options()), calls, rate=400), revoke(sandbox)
            )
            refused = sum(request.status == 401 for request in sandbox.requests)
            assert refused
            judge_bulk(side, applied(sandbox), exempt=refused)
            assert len(sandbox.token_requests) == 4
            table.add(
                "tokens revoked three times midway",
                how,
                side,
                naive=bitten,
                recovery=side.recovered(restored),
            )


@pytest.mark.full
@pytest.mark.needs_program("nginx")
async def test_an_oauth2_server_that_is_not_ours(table, tmp_path):
    """npm's oauth2-mock-server, fetched for this test: what it says is another's reading of RFC
    6749.
    """
    if shutil.which("npm") is None:
        pytest.skip("needs npm, not on this machine")
    (tmp_path / "package.json").write_text("{}")  # or npm looks for one further up
    installed = await asyncio.to_thread(
        subprocess.run,
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "oauth2-mock-server@8"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "npm_config_cache": str(tmp_path / "cache")},
    )
    assert installed.returncode == 0, installed.stderr
    port = free_port()
    process = subprocess.Popen(
        [
            "node",
            str(tmp_path / "node_modules" / ".bin" / "oauth2-mock-server"),
            "-a",
            "127.0.0.1",
            "-p",
            str(port),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    calls = updates(200, family="NPM")
    # Its endpoint is /token: nginx stands before it, and asks that the token which it gave is what
    # comes.
    strict = f"""
    map $http_authorization $is_its {{ default no; "~^Bearer eyJ" yes; }}
    server {{
        listen 127.0.0.1:@port;
        location = /oauth2/token {{ proxy_pass http://127.0.0.1:{port}/token; }}
        location ~ "^/v1/projects/[^/]+/messages/(?<asked>[^/]+)$" {{
            if ($is_its = no) {{ return 401; }}
            return 200 '{UPDATED.replace("$1", "$asked")}';
        }}
    }}
    """
    try:
        listening(port, process)
        with nginx(strict) as server:
            bitten = None
            if naive.RUN:
                bitten = (await naive.loop(server.options, calls[:20])).failures(server.applied())
            ours = await single(server.options, calls)
            judge(ours, server.applied())
            assert not ours.errors
            table.add(
                "a token endpoint that is not ours (oauth2-mock-server)",
                "single",
                ours,
                naive=bitten,
            )
    finally:
        stop(process)
