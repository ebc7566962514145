"""The command line in a fleet: a job shares limit and token with whoever else is there."""

from __future__ import annotations

import pytest

from sinch_conv_async.sandbox import Sandbox
from tests.commands import sinch_conv
from tests.whole.fleet.stores import Postgres, Redis


@pytest.fixture
async def sandbox():
    async with Sandbox() as sandbox:
        for number in range(30):
            sandbox.add_message(f"m{number}")
        yield sandbox


def a_file(folder):
    path = folder / "updates.csv"
    path.write_text("message_id,metadata\n" + "".join(f"m{number},x\n" for number in range(30)))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Redis, marks=pytest.mark.needs_program("redis-server"), id="redis"),
        pytest.param(Postgres, marks=pytest.mark.needs_program("initdb"), id="postgres"),
    ],
)
async def test_two_commands_one_after_the_other_need_one_token(kind, sandbox, tmp_path):
    with kind() as store:
        ended = await sinch_conv(
            "bulk", a_file(tmp_path), "--fleet", store.url, "-v", folder=tmp_path, sandbox=sandbox
        )
        assert ended.code == 0, ended.err
        assert "joined the fleet: 1 members" in ended.err
        again = {"SINCH_CONV_FLEET": store.url}
        ended = await sinch_conv("update", "m0", "y", folder=tmp_path, sandbox=sandbox, env=again)
        assert ended.code == 0, ended.err
    assert sandbox.updates_applied == 31
    assert len(sandbox.token_requests) == 1


@pytest.mark.parametrize("url", ["memcached://127.0.0.1", "127.0.0.1:6379", "redis:secret"])
async def test_a_url_of_no_store_ends_the_command(url, sandbox, tmp_path):
    ended = await sinch_conv("update", "m0", "x", "--fleet", url, folder=tmp_path, sandbox=sandbox)
    assert ended.code == 2
    assert "redis:// " in ended.err.replace(",", " ")
    assert url not in ended.err
    assert sandbox.requests == []


async def test_a_store_that_is_away_stops_no_command_and_its_password_is_not_shown(
    sandbox, tmp_path
):
    url = "redis://:the-password@127.0.0.1:1/0"
    ended = await sinch_conv(
        "bulk", a_file(tmp_path), "--fleet", url, "-vv", folder=tmp_path, sandbox=sandbox
    )
    assert ended.code == 0, ended.err
    assert "the-password" not in ended.err + ended.out
    assert sandbox.updates_applied == 30
