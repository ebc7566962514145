"""Both stores divide a limit as the reference does and share one token; what they do when the
server fails.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Any

import psycopg_pool
import pytest
import redis.asyncio

from sinch_conv_async import InvalidArgumentError, SessionManager, TokenError
from sinch_conv_async._wire.failure import Failure
from sinch_conv_async._wire.responses import TokenResponse
from sinch_conv_async.fleet import FleetError, ProjectKey, TokenKey, Wish
from sinch_conv_async.fleet._seal import Seal
from sinch_conv_async.fleet.conformance import check_shares, check_tokens
from sinch_conv_async.fleet.postgres import PostgresFleet
from sinch_conv_async.fleet.redis import RedisFleet
from sinch_conv_async.sandbox import Sandbox
from tests.servers import ID, client_of
from tests.whole.fleet.stores import Postgres, Redis, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sinch_conv_async.fleet._seal import Seal
from sinch_conv_async.fleet.conformance import FleetUnderTest

PROJECT = ProjectKey("https://api.example", "project")
WISH = Wish("member", 800, 100)
PROGRAMS = {"redis": ("redis-server",), "postgres": ("initdb",)}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=pytest.mark.needs_program(*programs))
        for name, programs in PROGRAMS.items()
    ],
)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    made: Store = Redis() if request.param == "redis" else Postgres()
    with made:
        yield made


@pytest.fixture
def make(store: Store) -> Callable[..., Any]:
    """Makes a fleet on the store; each test has a namespace or schema of its own."""
    own = f"t{secrets.token_hex(4)}"

    def fleet(**options: Any) -> Any:
        options = {"timeout": 5.0, **options}
        if isinstance(store, Redis):
            return RedisFleet(store.url, namespace=own, **options)
        return PostgresFleet(store.url, schema=own, **options)

    return fleet


def key() -> TokenKey:
    return TokenKey("https://auth.example", "key-id", secrets.token_hex(16))


async def token_of(
    fleet: FleetUnderTest, of: TokenKey, text: str = "token-text", lifetime: float = 60.0
) -> Any:
    async def fetch() -> TokenResponse:
        return TokenResponse(text, lifetime)

    return await fleet.token(of, fetch)


def test_a_store_divides_as_the_reference_does(make):
    check_shares(make, examples=40)


async def test_a_store_shares_one_token(make):
    await check_tokens(make)


async def test_a_fleet_can_be_closed_twice_and_used_again(make):
    fleet = make()
    await fleet.close()
    first = await fleet.share(PROJECT, WISH)
    await fleet.close()
    await fleet.close()
    assert (await fleet.share(PROJECT, WISH)).members == first.members == 1
    await fleet.close()


def test_a_new_event_loop_gets_connections_of_its_own(make):
    fleet = make()

    async def ask() -> int:
        return (await fleet.share(PROJECT, WISH)).members

    async def ask_and_close() -> int:
        try:
            return await ask()
        finally:
            await fleet.close()

    assert asyncio.run(ask()) == 1
    assert asyncio.run(ask_and_close()) == 1


async def test_what_is_kept_of_a_token_is_sealed_and_nothing_tells_whose_it_is(store, make):
    fleet, of = make(), key()
    await token_of(fleet, of, "the token itself")
    await fleet.share(PROJECT, WISH)
    await fleet.close()
    if isinstance(store, Redis):
        keys = store.tell("KEYS", "*").split()
        kept = "\n".join([*keys, *(store.tell("GET", name) for name in keys if ":token:" in name)])
    else:
        schemas = store.tell("SELECT nspname FROM pg_namespace WHERE nspname LIKE 't%'").split()
        kept = "\n".join(store.tell(f"SELECT * FROM {schema}.fleet_tokens") for schema in schemas)
    assert "gAAAA" in kept  # Fernet's version and the begin of its time, in base64
    for secret in ("the token itself", of.key_secret, of.key_id):
        assert secret not in kept


async def test_what_somebody_else_wrote_in_a_tokens_place_is_never_taken(make):
    fleet, of = make(), key()
    name = Seal.of(of).name
    found = await fleet.look(name, "intruder")
    assert found.locked
    for rubbish in ("rubbish", Seal.of(key()).close("a token of another key")):
        assert (await fleet.look(name, "intruder")).sealed is None
        await fleet.store(name, "intruder", rubbish, 60.0)
        assert (await token_of(fleet, of, "ours")).access_token == "ours"
        await fleet.forget_token(of, "ours")
        assert (await fleet.look(name, "intruder")).locked
    await fleet.close()


async def test_who_waits_too_long_for_anothers_token_request_makes_its_own(make, monkeypatch):
    monkeypatch.setattr("sinch_conv_async.fleet._store.WAIT", 0.2)
    fleet, of = make(), key()
    assert (await fleet.look(Seal.of(of).name, "somebody who never answers")).locked
    assert (await token_of(fleet, of, "ours")).access_token == "ours"
    await fleet.close()


async def test_a_thousand_callers_in_eight_managers_fetch_one_token_and_renew_it_once(make):
    async with Sandbox(auto_create=True) as sandbox, contextlib.AsyncExitStack() as stack:
        clients = []
        for _ in range(8):
            manager = await stack.enter_async_context(SessionManager(fleet=make()))
            client = client_of(sandbox, session_manager=manager)
            clients.append(await stack.enter_async_context(client))
        await asyncio.gather(*(client.authenticate() for client in clients for _ in range(125)))
        assert len(sandbox.token_requests) == 1
        sandbox.expire_tokens()
        await asyncio.gather(*(client.update_message_metadata(ID, "x") for client in clients))
        assert len(sandbox.token_requests) == 2


async def test_an_attempt_to_connect_goes_on_while_operations_are_late(store, make):
    fleet = make(timeout=0.25)
    store.freeze()
    try:
        for _ in range(3):
            with pytest.raises(FleetError):
                await fleet.share(PROJECT, WISH)
        late = asyncio.create_task(fleet.share(PROJECT, WISH))
        await asyncio.sleep(0)
    finally:
        store.resume()
    with contextlib.suppress(FleetError):  # a busy machine may need another one
        await late
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(FleetError):
                assert (await fleet.share(PROJECT, WISH)).members == 1
                break
    await fleet.close()


async def test_a_fleet_is_closed_while_it_connects(store, make):
    fleet = make(timeout=0.25)
    store.freeze()
    try:
        asking = asyncio.create_task(fleet.share(PROJECT, WISH))
        for _ in range(5):
            await asyncio.sleep(0)
        await fleet.close()
        with pytest.raises(FleetError, match="TimeoutError"):
            await asking
    finally:
        store.resume()


async def test_the_lock_goes_back_when_the_request_fails_or_is_cancelled(make):
    fleet, of = make(), key()
    began = asyncio.Event()

    async def hangs() -> TokenResponse | Failure:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def fails() -> TokenResponse | Failure:
        return Failure(TokenError("no"), retryable=True)

    task = asyncio.create_task(fleet.token(of, hangs))
    await began.wait()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert isinstance(await fleet.token(of, fails), Failure)
    assert (await token_of(fleet, of, "at once")).access_token == "at once"
    await fleet.close()


async def test_a_token_near_its_end_is_renewed_by_one_while_the_others_go_on_with_it(make):
    one, other, of = make(), make(), key()
    await token_of(one, of, "old", lifetime=60.0)
    # Of the whole life a fifth is left: as though four fifths had passed.
    name, sealed = Seal.of(of).name, Seal.of(of).close("old")
    await one.delete(name, (await one.look(name, "")).sealed)
    assert (await one.look(name, "test")).locked
    await one.store(name, "test", sealed, 0.5)
    while (await one.look(name, "")).lifetime > 0.14:
        await asyncio.sleep(0.005)
    asked = asyncio.Event()
    given = asyncio.Event()

    async def renew() -> TokenResponse:
        asked.set()
        await given.wait()
        return TokenResponse("new", 60.0)

    renewing = asyncio.create_task(one.token(of, renew))
    await asked.wait()
    assert (await token_of(other, of, "never")).access_token == "old"
    given.set()
    assert (await renewing).access_token == "new"
    assert (await token_of(other, of, "never")).access_token == "new"
    await one.close()
    await other.close()


async def test_a_lock_outlives_a_slow_request_because_its_owner_renews_it(make, monkeypatch):
    monkeypatch.setattr("sinch_conv_async.fleet._store.RENEW_LOCK", 0.01)
    fleet, of = make(), key()
    renewed = 0
    renew = fleet.renew_lock
    enough = asyncio.Event()

    async def counted(name: str, owner: str) -> None:
        nonlocal renewed
        await renew(name, owner)
        renewed += 1
        if renewed == 3:
            enough.set()

    async def slow() -> TokenResponse:
        await enough.wait()
        return TokenResponse("slow", 60.0)

    fleet.renew_lock = counted
    assert (await fleet.token(of, slow)).access_token == "slow"
    await fleet.close()


@pytest.mark.parametrize("frozen", [False, True])
async def test_without_the_store_a_share_is_an_error_and_a_token_is_asked_for(store, make, frozen):
    fleet = make(timeout=0.25)
    await make().close()
    await fleet.share(PROJECT, WISH)
    if frozen:
        store.freeze()
    else:
        store.stop()
    try:
        with pytest.raises(FleetError, match="gave no answer"):
            await fleet.share(PROJECT, WISH)
        assert (await token_of(fleet, key(), "alone")).access_token == "alone"
        await fleet.forget_token(key(), "alone")
    finally:
        if frozen:
            store.resume()
        else:
            store.start()
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(FleetError):
                await fleet.share(PROJECT, WISH)
                break
            await asyncio.sleep(0.05)
    await fleet.close()


async def test_a_share_that_is_cancelled_leaves_the_fleet_usable(store, make):
    fleet = make()
    await fleet.share(PROJECT, WISH)
    store.freeze()
    try:
        asking = asyncio.create_task(fleet.share(PROJECT, WISH))
        for _ in range(10):
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    finally:
        store.resume()
    assert (await fleet.share(PROJECT, WISH)).members == 1
    await fleet.close()


async def test_a_client_or_pool_that_was_given_stays_open(store):
    if isinstance(store, Redis):
        client = redis.asyncio.from_url(store.url)
        fleet: Any = RedisFleet(client, namespace="given")
        await fleet.share(PROJECT, WISH)
        await fleet.close()
        assert await client.ping()
        await client.aclose()
        return
    async with psycopg_pool.AsyncConnectionPool(
        store.url, min_size=1, max_size=1, open=False, kwargs={"autocommit": True}
    ) as pool:
        fleet = PostgresFleet(pool, schema="given", timeout=5.0)
        await fleet.share(PROJECT, WISH)
        await fleet.close()
        async with pool.connection() as connection:
            assert await (await connection.execute("SELECT 1")).fetchone() == (1,)


async def test_a_defect_of_a_given_redis_client_is_no_silence_of_the_store():
    """Only errors of Redis, of the network and of broken answers mean that the store is away."""

    class Broken(redis.asyncio.Redis):
        async def execute_command(self, *args: Any, **options: Any) -> Any:
            raise LookupError("a defect")

    async with Broken() as client:
        with pytest.raises(LookupError, match="a defect"):
            await RedisFleet(client).share(PROJECT, WISH)


@pytest.mark.parametrize("make_one", [RedisFleet, PostgresFleet])
def test_no_repr_shows_where_a_store_is(make_one):
    assert "password" not in repr(make_one("scheme://user:password@store.example/0"))


@pytest.mark.parametrize("schema", ["", "Upper", "a-b", "x; DROP", "a" * 64])
def test_a_schema_is_a_plain_name(schema):
    with pytest.raises(InvalidArgumentError, match="schema"):
        PostgresFleet("postgresql://", schema=schema)


@pytest.mark.needs_program("initdb")
class TestPostgres:
    async def test_a_role_that_may_not_create_is_told_apart_from_a_store_that_is_away(self):
        with Postgres() as store:
            store.tell("CREATE ROLE plain LOGIN")
            fleet = PostgresFleet(store.url.replace("tester", "plain"), timeout=5.0)
            with pytest.raises(FleetError, match="InsufficientPrivilege"):
                await fleet.share(PROJECT, WISH)
            await fleet.close()
            owner = PostgresFleet(store.url, timeout=5.0)
            await owner.create_schema()
            await owner.create_schema()
            await owner.close()

    async def test_tables_of_somebody_else_in_the_schema_are_an_error(self):
        with Postgres() as store:
            store.tell("CREATE SCHEMA sinch_conv; CREATE TABLE sinch_conv.fleet_tokens (name int)")
            fleet = PostgresFleet(store.url, timeout=5.0)
            with pytest.raises(FleetError):
                await fleet.look("name", "owner")
            await fleet.close()

    async def test_tables_that_are_dropped_again_at_once_are_an_error(self):
        class Dropped(PostgresFleet):
            async def create_schema(self) -> None:
                """Nothing is left of it."""

        with Postgres() as store:
            fleet = Dropped(store.url, timeout=5.0)
            with pytest.raises(FleetError, match="other tables"):
                await fleet.look("name", "owner")
            await fleet.close()


def test_a_forked_child_joins_anew_and_leaves_the_parents_connection_alone(make):
    fleet = make()

    async def ask() -> int:
        return (await fleet.share(PROJECT, WISH)).members

    async def parent() -> None:
        assert await ask() == 1
        pid = os.fork()
        if not pid:
            # In the child: a loop of its own, on which the fleet is asked and closed.
            asyncio.events._set_running_loop(None)
            code = 1
            with contextlib.suppress(BaseException):
                loop = asyncio.new_event_loop()
                code = loop.run_until_complete(ask()) - 1
            os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert await ask() == 1
        await fleet.close()

    with asyncio.Runner() as runner:
        runner.run(parent())
