"""A manager with a fleet keeps each project's pace at its share, whatever the store does."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest

from sinch_conv_async import (
    CallTimeoutError,
    ConversationClient,
    InvalidArgumentError,
    SessionManager,
)
from sinch_conv_async._core.sharing import Demand
from sinch_conv_async.fleet import Fleet, FleetError, ProjectKey, Share, TokenKey, Wish
from sinch_conv_async.fleet.conformance import check_shares, check_tokens
from sinch_conv_async.fleet.memory import MemoryFleet
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, Time, client_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from sinch_conv_async._wire.failure import Failure
    from sinch_conv_async._wire.responses import TokenResponse


class Told(Fleet):
    """Answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: Share | FleetError = Share(50, 60.0, 3, interval=0.005)
        self.wishes: list[Wish] = []
        self.forgotten: list[str] = []
        self.closed = 0
        self.asked = asyncio.Event()

    async def share(self, project: ProjectKey, wish: Wish) -> Share:
        self.wishes.append(wish)
        self.asked.set()
        await asyncio.sleep(0)
        if isinstance(self.answer, FleetError):
            raise self.answer
        return self.answer

    async def token(
        self, key: TokenKey, fetch: Callable[[], Awaitable[TokenResponse | Failure]]
    ) -> TokenResponse | Failure:
        return await fetch()

    async def forget_token(self, key: TokenKey, access_token: str) -> None:
        self.forgotten.append(access_token)

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
async def sandbox() -> AsyncIterator[Sandbox]:
    async with Sandbox(auto_create=True) as sandbox:
        yield sandbox


@pytest.fixture
def fleet() -> Told:
    return Told()


@pytest.fixture
async def client(sandbox: Sandbox, fleet: Told) -> AsyncIterator[ConversationClient]:
    async with (
        SessionManager(fleet=fleet) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        client.manager = manager  # type: ignore[attr-defined]  # for the tests' convenience
        yield client


def project_of(client: Any) -> Any:
    (project,) = client.manager.stats().projects
    return project


async def shows(client: Any, **fields: Any) -> None:
    """Returns when the manager's stats show these values of the project."""
    async with asyncio.timeout(10):
        while any(getattr(project_of(client), name) != value for name, value in fields.items()):
            await asyncio.sleep(0.002)


async def test_the_pace_is_the_share_and_an_operator_sees_it(client, fleet):
    await client.update_message_metadata(ID, "x")
    await shows(client, share=50, members=3, store_answers=True, pace=50.0, limit=800)
    assert "50/s of 3 members>" in repr(client.manager)
    fleet.answer = Share(20, 60.0, 5, interval=0.005)
    await shows(client, share=20, members=5, pace=20.0)


async def test_a_share_of_nothing_holds_calls_until_another_one_comes(client, fleet, sandbox):
    await client.update_message_metadata(ID, "x")
    fleet.answer = Share(0, 60.0, 900, interval=0.005)
    await shows(client, share=0, pace=0.0)
    waiting = asyncio.create_task(client.update_message_metadata(ID, "y"))
    asked = len(fleet.wishes)
    while len(fleet.wishes) < asked + 5:
        await asyncio.sleep(0.002)
    assert sandbox.updates_applied == 1
    assert fleet.wishes[-1].wanted >= 1
    fleet.answer = Share(10, 60.0, 900, interval=0.005)
    assert (await waiting).metadata == "y"


async def test_a_call_with_a_timeout_is_refused_by_the_clients_limit_not_by_a_small_share(
    client, fleet
):
    await client.update_message_metadata(ID, "x")
    fleet.answer = Share(0, 60.0, 900, interval=0.005)
    await shows(client, share=0)
    waiting = asyncio.create_task(client.update_message_metadata(ID, "y", timeout=30))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    fleet.answer = Share(10, 60.0, 900, interval=0.005)
    await waiting
    fleet.answer = Share(0, 60.0, 900, interval=0.005)
    await shows(client, share=0)
    with pytest.raises(CallTimeoutError):
        await client.update_message_metadata(ID, "z", timeout=0.02)


async def test_a_process_that_the_store_never_answers_sends_little_and_then_as_without_a_fleet(
    client, fleet, caplog
):
    caplog.set_level(logging.INFO, "sinch_conv_async")
    fleet.answer = FleetError("no store")
    await client.update_message_metadata(ID, "x")
    assert project_of(client).share == 8
    await shows(client, share=792, members=1, store_answers=False)
    assert "store away" in repr(client.manager)
    assert [r.message for r in caplog.records if "fleet" in r.message] == [
        "alone, without the fleet: no store"
    ]
    fleet.answer = Share(50, 60.0, 3, interval=0.005)
    await shows(client, share=50, store_answers=True)
    assert 792 in {wish.holds for wish in fleet.wishes}
    said = [r.message for r in caplog.records if "fleet" in r.message]
    assert said[-1] == "back in the fleet: 3 members"


async def test_when_its_lease_ends_a_process_takes_an_even_part(client, fleet, caplog):
    caplog.set_level(logging.INFO, "sinch_conv_async")
    fleet.answer = Share(500, 0.05, 4, interval=0.005)
    await client.update_message_metadata(ID, "x")
    await shows(client, share=500)
    fleet.answer = FleetError("no store")
    await shows(client, share=198, store_answers=False)  # a fourth of 792
    asked = len(fleet.wishes)
    async with asyncio.timeout(10):
        while len(fleet.wishes) < asked + 2:
            await asyncio.sleep(0.002)
    assert [r.message for r in caplog.records if "fleet" in r.message] == [
        "joined the fleet: 4 members",
        "alone, without the fleet: no store",
    ]


async def test_a_pause_that_the_api_asks_for_is_told_and_one_that_the_store_tells_is_kept(
    client, fleet, sandbox
):
    await client.update_message_metadata(ID, "x")
    sandbox.fail_next(429, retry_after=30)
    waiting = asyncio.create_task(client.update_message_metadata(ID, "y"))
    async with asyncio.timeout(10):
        while not any(20 < wish.paused_for <= 30 for wish in fleet.wishes):
            await asyncio.sleep(0.002)
    waiting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waiting


async def test_a_pause_of_the_fleet_is_kept_and_not_told_again(client, fleet):
    await client.update_message_metadata(ID, "x")
    fleet.answer = Share(50, 60.0, 3, interval=0.005, paused_for=40.0)
    async with asyncio.timeout(10):
        while project_of(client).paused_for < 30:
            await asyncio.sleep(0.002)
    asked = len(fleet.wishes)
    while len(fleet.wishes) < asked + 3:
        await asyncio.sleep(0.002)
    assert fleet.wishes[-1].paused_for == 0.0


async def test_closing_gives_the_share_back_and_closes_the_fleet(sandbox, fleet):
    async with (
        SessionManager(fleet=fleet) as manager,
        client_of(sandbox, session_manager=manager) as client,
    ):
        await client.update_message_metadata(ID, "x")
    assert fleet.wishes[-1].leaves
    assert fleet.closed == 1
    assert len({wish.member for wish in fleet.wishes}) == 1


async def test_a_manager_that_was_never_used_asks_the_fleet_nothing(fleet, sandbox, monkeypatch):
    time = Time()
    monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
    async with SessionManager(fleet=fleet) as manager:
        for number in range(200):
            async with client_of(sandbox, session_manager=manager, project_id=f"p{number}"):
                time.now += 3700
        assert len(manager.stats().projects) < 100
    assert (fleet.wishes, fleet.closed) == ([], 0)


async def test_a_project_whose_clients_set_no_limit_shares_none(sandbox, fleet):
    async with (
        SessionManager(fleet=fleet) as manager,
        client_of(sandbox, session_manager=manager, rate_limit=None) as unlimited,
    ):
        await unlimited.update_message_metadata(ID, "x")
        (project,) = manager.stats().projects
        assert (project.share, fleet.wishes) == (None, [])
        async with client_of(sandbox, session_manager=manager) as limited:
            limited.manager = manager
            await shows(limited, share=50)
        # The last client with a limit has gone: its share goes back.
        await shows(limited, share=None)
        assert fleet.wishes[-1].leaves


async def test_a_refused_token_is_forgotten_in_the_store_too(client, fleet, sandbox):
    sandbox.next_token = "first-token-of-the-fleet"
    await client.update_message_metadata(ID, "x")
    sandbox.expire_tokens()
    await client.update_message_metadata(ID, "y")
    assert fleet.forgotten == ["first-token-of-the-fleet"]
    assert len(sandbox.token_requests) == 2


async def test_managers_of_one_fleet_fetch_one_token_and_renew_it_once(sandbox):
    fleet = MemoryFleet()
    async with contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(3):
            manager = await stack.enter_async_context(SessionManager(fleet=fleet))
            clients.append(
                await stack.enter_async_context(client_of(sandbox, session_manager=manager))
            )
        await asyncio.gather(*(client.authenticate() for client in clients))
        assert len(sandbox.token_requests) == 1
        sandbox.expire_tokens()
        for client in clients:
            await client.update_message_metadata(ID, "x")
        assert len(sandbox.token_requests) == 2


def test_a_new_event_loop_joins_anew():
    fleet: Any = None
    members: list[str] = []

    async def use(client: ConversationClient | None = None) -> ConversationClient:
        nonlocal fleet
        async with Sandbox(auto_create=True, port=0) as sandbox:
            fleet = fleet or Told()
            manager = SessionManager(fleet=fleet)
            client = client_of(sandbox, session_manager=manager)
            await client.update_message_metadata(ID, "x")
            while not fleet.wishes:
                await asyncio.sleep(0)
            members.append(fleet.wishes[-1].member)
            fleet.wishes.clear()
            await manager.close()
        return client

    for _ in range(2):
        asyncio.run(use())
    assert len(set(members)) == 2


def test_a_manager_joins_anew_on_another_event_loop():
    manager = SessionManager(fleet=(fleet := Told()))
    members = set()

    async def use(*, last: bool) -> None:
        async with Sandbox(auto_create=True) as sandbox:
            await client_of(sandbox, session_manager=manager).update_message_metadata(ID, "x")
            fleet.asked = asyncio.Event()
            await fleet.asked.wait()
            members.add(fleet.wishes[-1].member)
            if last:
                await manager.close()

    asyncio.run(use(last=False))
    asyncio.run(use(last=True))
    assert len(members) == 2


async def test_a_project_that_the_manager_forgets_is_asked_for_no_more(sandbox, fleet, monkeypatch):
    time = Time()
    monkeypatch.setattr("sinch_conv_async._core.binding.clock_of", lambda loop: time.clock)
    async with SessionManager(fleet=fleet) as manager:
        async with client_of(sandbox, session_manager=manager) as client:
            await client.update_message_metadata(ID, "x")
        async with client_of(sandbox, session_manager=manager, project_id="kept"):
            for number in range(200):
                async with client_of(sandbox, session_manager=manager, project_id=f"p{number}"):
                    time.now += 3700
        kept = len(manager.stats().projects)
        assert kept < 100
        await asyncio.sleep(0)  # those that were cancelled end
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert names.count("sinch_conv_async share of a project") == kept


async def test_a_manager_that_is_forgotten_stops_asking(sandbox, fleet):
    manager = SessionManager(fleet=fleet)
    client = client_of(sandbox, session_manager=manager)
    await client.update_message_metadata(ID, "x")
    await fleet.asked.wait()
    with pytest.warns(ResourceWarning, match="unclosed"):  # noqa: PT031  # either of them may free the manager
        del client, manager
        gc.collect()
    await asyncio.sleep(0.01)
    asked = len(fleet.wishes)
    await asyncio.sleep(0.03)
    assert len(fleet.wishes) == asked


@pytest.mark.parametrize("fleet", [object(), "redis://127.0.0.1"])
def test_a_fleet_is_a_fleet(fleet):
    with pytest.raises(InvalidArgumentError, match="RedisFleet"):
        SessionManager(fleet=fleet)


@pytest.mark.parametrize(
    ("history", "waiting", "wanted"),
    [
        ([], 0, 8),  # quiet, and yet its next call finds a share
        ([(0.0, 0), (1.0, 0)], 0, 8),
        ([(0.0, 0), (1.0, 80)], 0, 100),  # a quarter more than it sent
        ([(0.0, 0), (1.0, 5)], 0, 10),  # of a few that come at random, there may be twice as many
        ([(0.0, 0), (1.0, 80), (1.75, 80)], 0, 60),  # a burst is remembered
        ([(0.0, 0), (1.0, 80), (2.9, 80), (4.0, 80)], 0, 8),  # and forgotten
        ([(0.0, 0), (1.0, 80)], 40, 140),
        ([(0.0, 0), (1.0, 900)], 900, 800),  # never more than the limit
        ([(0.0, 0), (0.1, 80)], 0, 8),  # a tenth of a second tells nothing
    ],
)
def test_what_a_process_wants(history, waiting, wanted):
    demand = Demand()
    found = 8
    for now, sent in history or [(0.0, 0)]:
        found = demand.wanted(now, sent=sent, waiting=waiting, limit=800, members=2)
    assert found == wanted


def test_the_fleet_in_memory_conforms():
    check_shares(MemoryFleet, examples=50)
    one = MemoryFleet()
    asyncio.run(check_tokens(lambda: one))
