"""Whatever the store does, calls go on, and together they keep to the limit."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from sinch_conv_async import SessionManager
from sinch_conv_async.fleet.postgres import PostgresFleet
from sinch_conv_async.fleet.redis import RedisFleet
from sinch_conv_async.sandbox import Sandbox
from tests.commands import unmeasured
from tests.servers import client_of
from tests.whole.fleet.stores import Postgres, Redis, Store

if TYPE_CHECKING:
    from typing import Self

MEMBERS = 3
LIMIT = 80
DIVIDED = 79

SECONDS = 3.0

# Seconds for which two answers may have overtaken each other.
A_MOMENT = 0.5

# Of the requests: a busy machine bunches what left evenly. Without a fleet it is a third of them.
STRAY = 0.05


@pytest.fixture(
    params=[
        pytest.param(Redis, marks=pytest.mark.needs_program("redis-server"), id="redis"),
        pytest.param(Postgres, marks=pytest.mark.needs_program("initdb"), id="postgres"),
    ]
)
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    with request.param() as made:
        yield made


def fleet_at(url: str, **options: Any) -> Any:
    # A busy machine is not a store that is away.
    options = {"timeout": 0.5, **options}
    return RedisFleet(url, **options) if url.startswith("redis") else PostgresFleet(url, **options)


class Members:
    """Processes as far as the store knows: managers with a fleet of their own, each with more to
    send than it may.
    """

    def __init__(
        self, make: Callable[[], Any], *, number: int = MEMBERS, token: str | None = None
    ) -> None:
        self._make = make
        self._number = number
        self.token = token
        self.failed: list[object] = []
        self.exceeded = 0

    async def __aenter__(self) -> Self:
        self._stack = contextlib.AsyncExitStack()
        self.sandbox = await self._stack.enter_async_context(
            Sandbox(auto_create=True, rate_limit=LIMIT)
        )
        self.sandbox.next_token = self.token
        self.managers = [
            await self._stack.enter_async_context(SessionManager(fleet=self._make()))
            for _ in range(self._number)
        ]
        self._tasks = [asyncio.create_task(self._send(manager)) for manager in self.managers]
        self._tasks.append(asyncio.create_task(self._watch()))
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        await self._stack.aclose()

    async def _send(self, manager: SessionManager) -> None:
        def endless() -> Iterator[tuple[str, str]]:
            number = 0
            while True:
                number += 1
                yield f"m{number % 100}", "x"

        async with (
            client_of(self.sandbox, session_manager=manager, rate_limit=LIMIT) as client,
            client.update_many(endless(), concurrency=20) as outcomes,
        ):
            async for outcome in outcomes:
                if not outcome.ok:
                    self.failed.append(outcome.error)

    @property
    def shares(self) -> list[int]:
        return [
            project.share or 0 for manager in self.managers for project in manager.stats().projects
        ]

    @property
    def in_touch(self) -> bool:
        return all(
            project.store_answers and project.members == self._number
            for manager in self.managers
            for project in manager.stats().projects
        )

    async def settled(self) -> None:
        """Returns when the limit is divided among all."""
        async with asyncio.timeout(40):
            while not (
                self.in_touch
                and sum(self.shares) == DIVIDED
                and max(self.shares) - min(self.shares) <= 1
            ):
                await asyncio.sleep(0.02)

    async def goes_on(self, seconds: float = SECONDS) -> int:
        """Updates that were applied in so much time."""
        before = self.sandbox.updates_applied
        await asyncio.sleep(seconds)
        return self.sandbox.updates_applied - before

    async def _watch(self) -> None:
        """Looks at what the members may send together. Two answers of the store may overtake each
        other for a moment.
        """
        since: float | None = None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0.02)
            if sum(self.shares) <= LIMIT:
                since = None
            elif since is None:
                since = loop.time()
            elif loop.time() - since > A_MOMENT:
                self.exceeded = max(self.exceeded, sum(self.shares))

    def kept_to_the_limit(self) -> None:
        assert self.failed == []
        assert self.exceeded == 0
        requests = self.sandbox.requests
        assert sum(request.status == 429 for request in requests) <= STRAY * len(requests)


@pytest.fixture
async def members(store: Store) -> AsyncIterator[Members]:
    async with Members(lambda: fleet_at(store.url)) as members:
        yield members


async def test_a_store_that_is_killed_and_started_empty(store, members):
    await members.settled()
    store.kill()
    assert await members.goes_on(5.0) > LIMIT
    store.start()
    assert await members.goes_on() > LIMIT
    await members.settled()
    members.kept_to_the_limit()


async def test_a_store_that_is_frozen(store, members):
    await members.settled()
    store.freeze()
    assert await members.goes_on(4.0) > LIMIT
    store.resume()
    await members.settled()
    members.kept_to_the_limit()


async def test_a_store_whose_state_is_deleted_twice(store, members):
    await members.settled()
    for _ in range(2):
        if isinstance(store, Redis):
            store.tell("FLUSHALL")
        else:
            store.tell(
                "TRUNCATE sinch_conv.fleet_projects, sinch_conv.fleet_leases, sinch_conv.fleet_tokens"
            )
        assert await members.goes_on(2.5) > LIMIT
    await members.settled()
    members.kept_to_the_limit()


async def test_a_store_that_takes_no_writes(store, members):
    await members.settled()
    if isinstance(store, Redis):
        store.tell("CONFIG", "SET", "maxmemory", "1")
    else:
        store.tell("ALTER SYSTEM SET default_transaction_read_only = on")
        store.tell("SELECT pg_reload_conf()")
    assert await members.goes_on(5.0) > LIMIT
    assert not members.in_touch
    if isinstance(store, Redis):
        store.tell("CONFIG", "SET", "maxmemory", "0")
        # Then a replica of nobody: every write is refused.
        store.tell("REPLICAOF", "127.0.0.1", "1")
        assert await members.goes_on() > LIMIT
        store.tell("REPLICAOF", "NO", "ONE")
    else:
        store.tell(
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM RESET default_transaction_read_only",
            "SELECT pg_reload_conf()",
        )
    await members.settled()
    members.kept_to_the_limit()


@contextlib.asynccontextmanager
async def slowed(port: int, seconds: float) -> AsyncIterator[int]:
    """A way to the store on which every piece of an answer comes so much later."""

    ends: set[asyncio.StreamWriter] = set()
    serving: set[asyncio.Task[None]] = set()

    async def pass_on(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(delay)
                writer.write(data)
        writer.transport.abort()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        ends.update((writer, back))
        await asyncio.gather(pass_on(reader, back, 0.0), pass_on(there, writer, seconds))
        for end in (writer, back):
            end.close()
            with contextlib.suppress(OSError):
                await end.wait_closed()
        ends.difference_update((writer, back))
        serving.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for end in ends:
            end.transport.abort()
        if left := list(serving):
            await asyncio.wait(left)


async def test_a_store_that_answers_40_ms_late_still_shares(store):
    async with slowed(store.port, 0.04) as port:
        url = store.url.replace(str(store.port), str(port))
        async with Members(lambda: fleet_at(url)) as members:
            await members.settled()
            assert await members.goes_on() > 2 * LIMIT
            members.kept_to_the_limit()


async def test_a_store_that_answers_400_ms_late_is_as_good_as_none(store):
    async with slowed(store.port, 0.4) as port:
        url = store.url.replace(str(store.port), str(port))
        async with Members(lambda: fleet_at(url, timeout=0.25), number=1) as members:
            assert await members.goes_on(5.0) > LIMIT
            assert not members.in_touch
            assert members.failed == []


async def test_a_password_that_is_wrong_shows_in_no_log(store, caplog):
    caplog.set_level("DEBUG")
    wrong = secrets.token_hex(8)
    if isinstance(store, Redis):
        store.tell("CONFIG", "SET", "requirepass", secrets.token_hex(8))
        url = store.url.replace("redis://", f"redis://:{wrong}@")
    else:
        url = store.url.replace("tester@", f"nobody:{wrong}@")
    async with Members(lambda: fleet_at(url), number=1) as members:
        assert await members.goes_on(4.0) > LIMIT / 2
        assert not members.in_touch
        assert members.failed == []
    assert wrong not in caplog.text
    assert "alone, without the fleet" in caplog.text


async def test_tls_to_a_store_that_speaks_none(store):
    url = (
        store.url.replace("redis://", "rediss://")
        if isinstance(store, Redis)
        else f"{store.url}?sslmode=require"
    )
    async with Members(lambda: fleet_at(url), number=1) as members:
        assert await members.goes_on(4.0) > LIMIT / 2
        assert not members.in_touch
        assert members.failed == []


@pytest.mark.needs_program("faketime", "initdb")
@pytest.mark.parametrize("shift", ["+1h", "-1h"])
async def test_clocks_that_are_an_hour_apart(shift):
    class Shifted(Postgres):
        # Redis' memory allocator and faketime do not go together.
        def command(self) -> Any:
            return ("faketime", "-f", shift, *super().command())

    with Shifted() as store:
        async with Members(lambda: fleet_at(store.url)) as members:
            await members.settled()
            assert await members.goes_on() > 2 * LIMIT
            members.kept_to_the_limit()


WORKER = """
import asyncio, json, sys
from sinch_conv_async import ConversationClient, SessionManager
from sinch_conv_async.fleet.redis import RedisFleet

async def main(url, options):
    def endless():
        number = 0
        while True:
            number += 1
            yield f"w{number % 100}", "x"
    async with SessionManager(fleet=RedisFleet(url)) as manager, ConversationClient(
        session_manager=manager, rate_limit=80, **options
    ) as client:
        async with client.update_many(endless(), concurrency=20) as outcomes:
            async for outcome in outcomes:
                print(outcome.ok, flush=True)

asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
"""


@contextlib.asynccontextmanager
async def another_process(
    store: Redis, sandbox: Sandbox
) -> AsyncIterator[asyncio.subprocess.Process]:
    """One more member, in a process of its own; returns when it has sent something."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORKER, store.url, json.dumps(sandbox.client_options())),
        stdout=asyncio.subprocess.PIPE,
        env=unmeasured(os.environ),
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"True\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()
        process._transport.close()  # type: ignore[attr-defined]  # its pipes outlive it by a pass of the loop


@pytest.mark.needs_program("redis-server")
class TestProcesses:
    async def test_the_share_of_a_process_that_was_killed_goes_to_the_others(self):
        with Redis() as store:
            async with Members(lambda: fleet_at(store.url), number=2) as members:
                await members.settled()
                async with another_process(store, members.sandbox) as process:
                    async with asyncio.timeout(20):
                        while sum(members.shares) > 60:
                            await asyncio.sleep(0.02)
                    process.kill()
                    await members.settled()
                members.kept_to_the_limit()

    async def test_a_process_that_was_stopped_for_long_joins_again(self):
        with Redis() as store:
            async with Members(lambda: fleet_at(store.url), number=2) as members:
                async with another_process(store, members.sandbox) as process:
                    process.send_signal(signal.SIGSTOP)
                    await members.settled()
                    process.send_signal(signal.SIGCONT)
                    async with asyncio.timeout(20):
                        while sum(members.shares) > 60:
                            await asyncio.sleep(0.02)
                assert members.failed == []
                assert members.exceeded == 0

    async def test_no_secret_is_in_the_store(self):
        with Redis() as store:
            async with Members(lambda: fleet_at(store.url), token="token-of-the-fleet") as members:
                await members.settled()
                kept = ""
                for key in store.tell("KEYS", "*").split():
                    kind = store.tell("TYPE", key).strip()
                    kept += key + store.tell(
                        *(("HGETALL", key) if kind == "hash" else ("GET", key))
                    )
                options = members.sandbox.client_options()
                assert options["project_id"] in kept
                assert options["key_secret"] not in kept
                assert options["key_id"] not in kept
                assert members.token not in kept


if os.getuid() == 0 or os.path.exists("/usr/bin/sudo"):
    from tests.whole.faults.network import SERVER, network

    @pytest.mark.needs_program("redis-server", "ip", "nft")
    async def test_a_network_that_drops_every_packet_to_the_store():
        with network() as made:

            class There(Redis):
                host = SERVER

                def command(self) -> Any:
                    words = [*super().command()]
                    words[words.index("127.0.0.1")] = SERVER
                    words[words.index("--port") + 1] = "443"
                    return (*made.inside, *words, "--protected-mode", "no")

            store = There()
            store.port = 443
            try:
                store.start()
                async with Members(lambda: fleet_at(f"redis://{SERVER}:443/0")) as members:
                    await members.settled()
                    made.vanish()
                    assert await members.goes_on(5.0) > LIMIT
                    assert not members.in_touch
                    made.heal()
                    await members.settled()
                    members.kept_to_the_limit()
            finally:
                store.__exit__()
