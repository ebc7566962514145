"""Who goes next: one grant for turn and slot, in order, and nothing of a call that gave up is left.
Time is the test's.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import heapq
import itertools
import random
from collections import defaultdict, deque
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async import CallTimeoutError, ClientStateError, RateLimitedError
from sinch_conv_async._core import admission as pacing
from sinch_conv_async._core.admission import Admission, Permit, Project
from sinch_conv_async._core.lifetime import Lifetime

if TYPE_CHECKING:
    from collections.abc import Callable

LONG = RateLimitedError("come back tomorrow", http_status=429, retry_after=86400.0, attempts=3)


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class World:
    """An admission in a time that stands still until the test lets it pass, and its calls."""

    def __init__(self, slots: int = 1_000) -> None:
        self.now = 1000.0
        self.timers: list[tuple[float, int, Timer]] = []
        self.timers_set = 0
        self.calls = Lifetime()
        self.admission = Admission(slots, clock=lambda: self.now, call_later=self.call_later)
        self.granted: list[object] = []
        self.permits: defaultdict[Project, deque[Permit]] = defaultdict(deque)
        self.released: dict[Project, Permit] = {}

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        assert delay >= 0
        self.timers_set += 1
        timer = Timer(callback)
        heapq.heappush(self.timers, (self.now + delay, self.timers_set, timer))
        return timer

    @property
    def timers_left(self) -> int:
        return sum(not timer.cancelled for _, _, timer in self.timers)

    async def pass_time(self, seconds: float) -> None:
        """Fires what is due on the way, one timer after the other, and lets the calls run."""
        end = self.now + seconds
        await settle()
        while self.timers and self.timers[0][0] <= end:
            self.now, _, timer = heapq.heappop(self.timers)
            if not timer.cancelled:
                timer.callback()
            await settle()
        self.now = end

    async def call(
        self,
        project: Project,
        name: object = None,
        *,
        again: bool = False,
        deadline: float | None = None,
    ) -> None:
        """Is admitted and stays in until it is told to leave."""
        permit = self.admission.admit_now(project, self.now)
        if permit is None:
            permit = await self.admission.admit(project, self.calls, again=again, deadline=deadline)
        permit.written()
        self.permits[project].append(permit)
        self.granted.append(name)

    def admit_now(self, project: Project) -> bool:
        permit = self.admission.admit_now(project, self.now)
        if permit is None:
            return False
        permit.written()
        self.permits[project].append(permit)
        return True

    def release(self, project: Project) -> None:
        """The call that was admitted first has had its answer."""
        permit = self.released[project] = self.permits[project].popleft()
        permit.release()

    def answered(self, project: Project) -> None:
        """The answer to the call that was released last was no 429."""
        self.admission.answered(project, self.released[project])

    def start(self, project: Project, name: object = None, **options: object) -> asyncio.Task[None]:
        return asyncio.create_task(self.call(project, name, **options))  # type: ignore[arg-type]  # keywords of several types

    def assert_idle(self, *projects: Project) -> None:
        """Every counter is at zero, every slot is free, and of those who gave up no more is left
        than was agreed.
        """
        assert self.admission.free == self.admission.slots
        assert self.admission.waiting == 0
        assert not self.calls.waiting
        for project in projects:
            assert (project.waiting, project.in_flight) == (0, 0)
            assert (
                project.abandoned
                == len(project.fresh) + len(project.retries)
                <= pacing.ABANDONED_KEPT
            )
            assert all(future.done() for future in (*project.fresh, *project.retries))


async def settle() -> None:
    """A grant takes two turns of the loop to be seen: the future's, and that of the task that waits
    for it.
    """
    for _ in range(4):
        await asyncio.sleep(0)


class Owner:
    """In a client's place."""


def project_at(limit: float | None) -> Project:
    project = Project()
    owner = Owner()
    project.join(owner, rate_limit=limit, max_retry_after=120.0)
    OWNERS.append(owner)  # limits are held weakly
    return project


OWNERS: list[Owner] = []


@pytest.fixture(autouse=True)
def owners():
    yield
    OWNERS.clear()


async def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# Who goes next


async def test_a_call_goes_at_once_when_turn_and_slot_are_there():
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    assert (world.admission.free, project.in_flight) == (0, 1)
    assert not world.admit_now(project)
    world.release(project)
    world.assert_idle(project)


async def test_within_a_project_it_is_first_come_first_served():
    world, project = World(), project_at(10)
    tasks = [world.start(project, number) for number in range(25)]
    await settle()
    assert world.granted == [0]
    await world.pass_time(3.0)
    assert world.granted == list(range(25))
    await asyncio.gather(*tasks)


async def test_nobody_overtakes_those_who_wait():
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    waiting = world.start(project, "first")
    await settle()
    world.admission.free += 1  # as though a slot had come free in this very tick
    assert not world.admit_now(project)
    world.admission.free -= 1
    world.release(project)
    await waiting


async def test_retries_go_ahead_of_calls_that_have_not_started():
    world, project = World(), project_at(10)
    tasks = [world.start(project, f"new {number}") for number in range(4)]
    await settle()
    tasks += [world.start(project, f"retry {number}", again=True) for number in range(2)]
    await world.pass_time(1.0)
    assert world.granted == ["new 0", "retry 0", "retry 1", "new 1", "new 2", "new 3"]
    await asyncio.gather(*tasks)


async def test_projects_that_are_due_take_turns():
    """However long one's queue is."""
    world = World(slots=1)
    busy, small, smaller = Project(), Project(), Project()
    assert world.admit_now(busy)
    tasks = [world.start(busy, "busy") for _ in range(30)]
    await settle()
    tasks += [world.start(small, "small") for _ in range(3)]
    tasks += [world.start(smaller, "smaller") for _ in range(2)]
    await settle()
    under_way = busy
    by_name = {"busy": busy, "small": small, "smaller": smaller}
    for _ in range(len(tasks)):
        world.release(under_way)
        await settle()
        under_way = by_name[str(world.granted[-1])]
    world.release(under_way)
    assert world.granted[:9] == ["busy", "small", "smaller"] * 2 + ["busy", "small", "busy"]
    await asyncio.gather(*tasks)
    world.assert_idle(busy, small, smaller)


@pytest.mark.parametrize("own_projects", [False, True], ids=["one project", "a project each"])
async def test_ten_slots_serve_fifty_callers_alike(own_projects):
    """Equal latencies, each caller calls again as soon as it is answered: the counts differ by at
    most one.
    """
    world = World(slots=10)
    one = Project()
    counts = [0] * 50
    latency = 0.05

    async def caller(number: int) -> None:
        project = Project() if own_projects else one
        while True:
            await world.call(project)
            counts[number] += 1
            answered = asyncio.get_running_loop().create_future()
            world.call_later(latency, functools.partial(answered.set_result, None))
            try:
                await answered
            finally:
                world.release(project)

    callers = [asyncio.create_task(caller(number)) for number in range(50)]
    for _ in range(120):
        await settle()
        await world.pass_time(latency / 2)
        assert max(counts) - min(counts) <= 1
    assert sum(counts) == 10 * 61  # those of the first moment among them
    await end(*callers)


# Holding nothing while waiting


async def test_a_paused_project_holds_no_slot_and_the_others_go_on_at_full_speed():
    world = World(slots=2)
    paused, other = Project(), Project()
    paused.pace.throttled(world.now, departed=world.now, retry_after=60.0, rng=random.Random(1))
    waiting = [world.start(paused, "paused") for _ in range(50)]
    await settle()
    assert world.admission.free == 2
    for _ in range(100):
        assert world.admit_now(other)
        assert world.admit_now(other)
        world.release(other)
        world.release(other)
    assert world.granted == []
    await world.pass_time(60.0)
    assert world.granted == ["paused"] * 2
    await end(*waiting[2:])
    world.release(paused)
    world.release(paused)
    world.assert_idle(paused, other)


async def test_a_full_pool_spends_nobodys_turn():
    world = World(slots=1)
    busy, paced = Project(), project_at(1)
    assert world.admit_now(busy)
    waiting = world.start(paced, "paced")
    await world.pass_time(10.0)
    due = paced.pace.due
    assert due < world.now
    assert world.granted == []
    world.release(busy)
    await waiting
    assert paced.pace.due > world.now


async def behind_a_full_pool(
    world: World, paced: Project, busy: Project, *, waiting: int
) -> list[asyncio.Task[None]]:
    """A line that has begun to move, when others take the last slot."""
    assert world.admit_now(paced)
    tasks = [world.start(paced) for _ in range(waiting)]
    await world.pass_time(1.01 / paced.pace.rate)
    assert len(world.granted) == 1
    assert world.admit_now(busy)
    assert world.admission.free == 0
    return tasks


async def test_the_turns_missed_while_the_pool_was_full_are_not_all_made_up_for():
    world = World(slots=3)
    busy, paced = Project(), project_at(100)
    waiting = await behind_a_full_pool(world, paced, busy, waiting=200)
    await world.pass_time(10.0)
    world.admission.free += 200
    world.release(busy)
    await settle()
    assert 1 + 25 <= len(world.granted) <= 1 + 26
    await end(*waiting)


async def test_a_call_that_comes_after_its_turn_was_due_is_not_late():
    """A project that waited, fell silent, and comes back finds even spacing, though it was never
    looked at in between.
    """
    world = World(slots=2)
    paced, busy = project_at(100), Project()
    await asyncio.gather(*[world.start(paced) for _ in range(1)])
    waiting = world.start(paced)
    await settle()
    assert world.admit_now(busy)  # no slot is left when the turn comes
    await world.pass_time(0.0101)
    world.release(busy)
    await waiting
    assert world.admission.free == 0
    await world.pass_time(5.0)
    late = [world.start(paced) for _ in range(10)]
    await settle()
    granted = len(world.granted)
    world.admission.slots += 10
    world.admission.free += 10
    world.release(paced)
    await settle()
    assert len(world.granted) - granted == 1
    await end(*late)


# Waiting costs little


async def test_there_is_no_timer_for_each_call_that_waits():
    world, project = World(), project_at(1)
    waiting = [world.start(project) for _ in range(1000)]
    await settle()
    assert world.timers_set == world.timers_left == 1
    await end(*waiting)
    world.release(project)


async def test_a_timer_for_each_turn_and_no_more():
    world, project = World(), project_at(10)
    waiting = [world.start(project) for _ in range(100)]
    await settle()
    await world.pass_time(20.0)
    assert len(world.granted) == 100
    assert world.timers_set <= 100
    await asyncio.gather(*waiting)


async def test_an_earlier_turn_replaces_the_timer():
    world = World()
    slow, fast = project_at(0.1), project_at(10)
    tasks = [world.start(project, name) for project, name in [(slow, "slow"), (fast, "fast")] * 2]
    await settle()
    assert world.timers_set == 2
    assert world.timers_left == 1
    await world.pass_time(0.2)
    assert world.granted == ["slow", "fast", "fast"]
    await world.pass_time(10.0)
    assert world.granted == ["slow", "fast", "fast", "slow"]
    await asyncio.gather(*tasks)


async def test_a_timer_that_fires_early_is_set_again():
    """An event loop may, by its clock's resolution."""
    world, project = World(), project_at(1)
    assert world.admit_now(project)
    waiting = world.start(project)
    await settle()
    (_, _, timer) = world.timers.pop()
    timer.callback()
    await settle()
    assert not waiting.done()
    assert world.timers_left == 1
    await world.pass_time(1.1)
    assert waiting.done()


class Looked(asyncio.Future):
    """Counts how often it is asked whether it is done."""

    looks = 0

    def done(self) -> bool:
        type(self).looks += 1
        return super().done()


@pytest.mark.parametrize("waiting", [100, 10_000])
async def test_admitting_one_costs_the_same_however_many_wait(waiting):
    """Looks at waiting calls for each grant and each call that gives up, half of them giving up at
    random.
    """
    world, project = World(slots=1), Project()
    Looked.looks = 0
    futures = [Looked() for _ in range(waiting)]
    assert world.admit_now(project)
    for future in futures:
        project.fresh.append(future)
        project.waiting += 1
        world.admission.waiting += 1
    project.queued = True
    world.admission._ready.append(project)
    for future in random.Random(7).sample(futures, waiting // 2):
        future.cancel()
        world.admission.waiting -= 1
        project.abandon()
    for _ in range(waiting // 2):
        world.admission.release(project, departed=world.now)
    world.admission.release(project, departed=world.now)
    assert all(future.done() for future in futures)
    print(f"{Looked.looks / waiting:.2f} looks a call, {waiting:,} waiting")
    # Its own cancel() looks once or twice; the rest is ours, compaction included.
    assert Looked.looks <= 8 * waiting
    world.assert_idle(project)


async def test_calls_that_gave_up_do_not_stay_in_the_queue():
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    for _ in range(50):
        await end(*[world.start(project) for _ in range(100)])
        assert len(project.fresh) <= pacing.ABANDONED_KEPT + 1
    kept = [world.start(project, again=True) for _ in range(10)]
    await settle()
    await end(*[world.start(project, again=True) for _ in range(500)])
    assert len(project.retries) <= 10 + pacing.ABANDONED_KEPT + 1
    await end(*kept)
    world.release(project)
    world.assert_idle(project)


async def test_cancelling_all_of_very_many_at_once_leaves_the_counters_at_zero():
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    tasks = [world.start(project) for _ in range(5_000)]
    await settle()
    await end(*tasks)
    assert project.waiting == 0
    world.release(project)
    world.assert_idle(project)


# Giving up


async def test_cancelled_in_the_very_tick_of_the_grant_a_call_passes_slot_and_turn_on():
    world, project = World(slots=1), project_at(1)
    assert world.admit_now(project)
    first, second, third = (world.start(project, name) for name in ("first", "second", "third"))
    await settle()
    await world.pass_time(2.0)
    world.release(project)  # grants the first
    assert project.waiting == 2
    first.cancel()
    await settle()
    assert first.cancelled()
    assert world.granted == ["second"]
    world.release(project)
    await world.pass_time(1.1)
    assert world.granted == ["second", "third"]
    world.release(project)
    await asyncio.gather(second, third)
    world.assert_idle(project)


async def test_a_turn_that_is_given_back_is_used_at_once_though_a_later_one_was_planned():
    world, project = World(slots=5), project_at(1)
    assert world.admit_now(project)
    first, second = world.start(project, "first"), world.start(project, "second")
    await settle()
    (at, _, timer) = world.timers.pop()
    world.now = at
    timer.callback()  # grants the first, and sets the timer for the second
    assert (project.waiting, project.in_flight) == (1, 2)
    first.cancel()
    await settle()
    assert world.granted == ["second"]
    # The timer that was set for it finds nothing to do, and the next one's turn is not lost by it.
    third = world.start(project, "third")
    await settle()
    await world.pass_time(10.0)
    assert world.granted == ["second", "third"]
    for _ in range(3):
        world.release(project)
    await asyncio.gather(second, third)
    world.assert_idle(project)


async def test_a_call_that_fails_in_the_tick_in_which_it_is_cancelled_is_cancelled_and_reported_by_nobody(
    caplog,
):
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    task = world.start(project)
    await settle()
    world.calls.fail_waiting()
    task.cancel()
    await settle()
    assert task.cancelled()
    del task
    gc.collect()
    assert caplog.records == []
    world.release(project)
    world.assert_idle(project)


async def test_closing_the_client_ends_the_wait():
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    tasks = [world.start(project) for _ in range(3)]
    await settle()
    world.calls.fail_waiting()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, ClientStateError)
    world.release(project)
    world.assert_idle(project)


async def test_cancelling_at_random_loses_no_slot_and_no_wake_up():
    """Calls come, are cancelled while they wait and while they are under way, and leave, in any
    order.
    """
    for seed in range(20):
        rng = random.Random(seed)
        world = World(slots=3)
        projects = [Project(), project_at(50), project_at(5)]
        running: dict[asyncio.Task[None], None] = {}  # in the order of their start

        async def call(project, stay, world=world):
            await world.call(project)
            try:
                woken = asyncio.get_running_loop().create_future()
                world.call_later(stay, lambda: woken.done() or woken.set_result(None))
                await woken
            finally:
                world.release(project)

        for _ in range(150):
            for _ in range(rng.randrange(4)):
                task = asyncio.create_task(call(rng.choice(projects), rng.uniform(0, 0.1)))
                running[task] = None
                task.add_done_callback(running.pop)
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            for task in rng.sample(list(running), rng.randrange(len(running) // 3 + 1)):
                task.cancel()
            await world.pass_time(rng.uniform(0, 0.02))
        for _ in range(1_000):
            if not running:
                break
            await world.pass_time(1.0)
        assert not running
        world.assert_idle(*projects)
        for project in projects:  # and everyone can still get in
            await world.pass_time(1.0)
            assert world.admit_now(project)


# Deadlines


async def test_a_deadline_that_cannot_be_met_fails_at_once():
    world, project = World(), project_at(10)
    waiting = [world.start(project) for _ in range(21)]
    await settle()
    with pytest.raises(CallTimeoutError, match="turn cannot come") as caught:
        await world.call(project, deadline=world.now + 1.7)
    assert caught.value.sent == "no"
    assert caught.value.attempts == 0
    task = world.start(project, "in time", deadline=world.now + 2.5)
    await world.pass_time(2.5)
    assert world.granted[-1] == "in time"
    await asyncio.gather(task, *waiting)


async def test_a_pause_beyond_the_deadline_fails_at_once_also_a_retry():
    world, project = World(), Project()
    project.pace.throttled(world.now, departed=world.now, retry_after=60.0, rng=random.Random(1))
    for again in (False, True):
        with pytest.raises(CallTimeoutError):
            await world.call(project, again=again, deadline=world.now + 59.0)
    task = world.start(project, "in time", again=True, deadline=world.now + 61.0)
    await world.pass_time(60.0)
    await task


async def test_a_pause_that_begins_while_calls_wait_fails_those_that_cannot_wait_it_out():
    world, project = World(), project_at(10)
    before = world.start(project)
    deadlines = {"first": 59.0, "second": 62.0, "third": 5.0, "fourth": None}
    tasks = {
        name: world.start(project, name, deadline=None if seconds is None else world.now + seconds)
        for name, seconds in deadlines.items()
    }
    given_up = world.start(project, "given up", deadline=world.now + 5.0)
    await settle()
    given_up.cancel()
    project.pace.throttled(world.now, departed=world.now, retry_after=60.0, rng=random.Random(1))
    world.admission.paused(project)
    await settle()
    for name in ("first", "third"):
        with pytest.raises(CallTimeoutError, match="turn cannot come") as caught:
            await tasks[name]
        assert caught.value.sent == "no"
    assert project.waiting == 2
    await world.pass_time(61.0)
    assert world.granted[1:] == ["second", "fourth"]
    await asyncio.gather(before, tasks["second"], tasks["fourth"])


async def test_deadlines_are_forgotten_with_the_calls_that_had_them():
    world, project = World(), project_at(100)
    tasks = [world.start(project, deadline=world.now + 100.0) for _ in range(100)]
    # The first that would have to go, and so at the top of the heap.
    waiting = world.start(project, deadline=world.now + 50.0)
    await settle()
    await world.pass_time(0.9)
    assert (project.waiting, len(project.deadlines)) == (100 - project.in_flight + 1, 100)
    tasks.append(world.start(project, deadline=world.now + 200.0))
    await settle()
    assert len(project.deadlines) == project.waiting
    await world.pass_time(1.0)
    assert not project.deadlines
    await asyncio.gather(waiting, *tasks)


async def test_a_retry_is_not_refused_for_those_behind_it_nor_for_those_who_gave_up():
    world, project = World(), project_at(10)
    waiting = [world.start(project) for _ in range(50)]
    await settle()
    gone = [world.start(project, again=True) for _ in range(40)]
    await settle()
    await end(*gone)
    task = world.start(project, "retry", again=True, deadline=world.now + 0.2)
    await world.pass_time(0.2)
    assert "retry" in world.granted
    await end(task, *waiting)


async def test_turns_that_are_made_up_for_count_as_there():
    """The loop is a quarter of a second late, so that 25 turns come at once: the 20th is not
    refused.
    """
    world = World(slots=3)
    busy, paced = Project(), project_at(100)
    waiting = await behind_a_full_pool(world, paced, busy, waiting=20)
    await world.pass_time(1.0)
    last = world.start(paced, "last", deadline=world.now + 0.01)
    await settle()
    world.admission.free += 50
    world.release(busy)
    await asyncio.gather(last, *waiting)
    assert world.granted[-1] == "last"


async def test_without_a_limit_a_queue_of_any_length_may_still_be_in_time():
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    tasks = [world.start(project, deadline=world.now + 1e-6) for _ in range(1000)]
    await settle()
    assert not any(task.done() for task in tasks)
    await end(*tasks)
    world.release(project)


# Sent away for long


async def refused(world: World, project: Project, waiting: int) -> list[asyncio.Task[None]]:
    """One call under way is answered 429 with a long Retry-After; so many wait, and fail."""
    assert world.admit_now(project)
    tasks = [world.start(project) for _ in range(waiting)]
    await settle()
    world.release(project)
    world.admission.refuse_waiting(project, LONG)
    await settle()
    return tasks


async def test_all_who_wait_fail_each_with_an_error_of_its_own():
    world, project = World(slots=1), Project()
    first, *others = await refused(world, project, 101)
    assert first.done()  # it was granted the slot before anybody knew
    errors = {task.exception() for task in others}
    assert len(errors) == 100
    for error in errors:
        assert isinstance(error, RateLimitedError)
        assert error is not LONG
        assert (error.attempts, error.retry_after) == (0, 86400.0)
    assert LONG.attempts == 3
    assert "probing" in repr(project)
    world.release(project)
    world.assert_idle(project)


async def test_then_one_call_at_a_time_probes_and_the_first_that_gets_through_opens_for_all():
    world, project = World(slots=10), Project()
    await refused(world, project, 0)
    tasks = [world.start(project, number) for number in range(20)]
    await settle()
    assert world.granted == [0]
    world.release(project)  # answered 429 again
    await settle()
    assert world.granted == [0, 1]
    world.release(project)
    world.answered(project)
    await settle()
    assert world.granted == list(range(2 + 10))
    assert not project.probing
    for _ in range(len(tasks) - 2):
        world.release(project)
        world.answered(project)
        await settle()
    await asyncio.gather(*tasks)
    world.assert_idle(project)


async def test_a_probe_that_is_cancelled_passes_it_on():
    world, project = World(slots=10), Project()
    await refused(world, project, 0)
    tasks = [world.start(project, number) for number in range(3)]
    await settle()
    world.release(project)  # the first one's, cancelled: nobody knows anything
    assert project.waiting == 1
    tasks[1].cancel()  # in the tick of its grant
    await settle()
    assert world.granted == [0, 2]
    assert project.in_flight == 1
    world.release(project)
    world.assert_idle(project)


async def test_an_answer_to_a_call_that_was_under_way_before_says_nothing():
    world, project = World(slots=10), Project()
    for _ in range(3):
        assert world.admit_now(project)
    world.release(project)
    world.admission.refuse_waiting(project, LONG)
    task = world.start(project, "probe")
    await settle()
    for _ in range(2):
        assert world.granted == []
        world.release(project)
        world.answered(project)
        assert project.probing
        await settle()
    assert world.granted == ["probe"]
    await task
    world.release(project)
    world.answered(project)
    assert not project.probing
    world.assert_idle(project)


async def test_an_answer_opens_for_those_who_wait_though_another_call_is_under_way():
    """The probe leaves, its successor is granted by that, and then the answer is read."""
    world, project = World(slots=10), Project()
    await refused(world, project, 0)
    tasks = [world.start(project, number) for number in range(4)]
    await settle()
    world.release(project)
    world.answered(project)
    await asyncio.gather(*tasks)
    assert project.in_flight == 3


async def test_an_answer_with_nobody_waiting_opens_too():
    world, project = World(), Project()
    await refused(world, project, 0)
    assert world.admit_now(project)
    assert not world.admit_now(project)
    world.release(project)
    world.answered(project)
    world.answered(project)
    assert not project.probing


async def test_many_who_are_sent_away_at_once_are_looked_at_once():
    """256 exchanges are answered alike in one tick, while the calls that failed have
    not run yet.
    """
    world, project = World(slots=1), Project()
    assert world.admit_now(project)
    tasks = [world.start(project) for _ in range(1000)]
    await settle()
    Looked.looks = 0
    project.fresh[0] = Looked()
    world.admission.refuse_waiting(project, LONG)
    looks = Looked.looks
    for _ in range(255):
        world.admission.refuse_waiting(project, LONG)
    assert Looked.looks == looks
    await end(*tasks)


# The project


def test_the_lowest_limit_wins_and_a_client_that_leaves_takes_its_own_along():
    project = Project()
    first, second = Owner(), Owner()
    project.join(first, rate_limit=800, max_retry_after=120.0)
    assert project.pace.limit == 800
    project.join(second, rate_limit=100, max_retry_after=120.0)
    assert project.pace.limit == 100
    project.leave(second)
    assert project.pace.limit == 800
    project.leave(first)
    assert project.pace.limit == 800, "the last second is not forgotten"
    project.join(second, rate_limit=None, max_retry_after=120.0)
    assert project.pace.limit is None
    project.leave(second)
    project.leave(second)


def test_a_limit_that_stays_the_same_leaves_the_pace_alone():
    project = project_at(800)
    pace = project.pace
    pace.throttled(5.0, departed=5.0, retry_after=None, rng=random.Random(1))
    rate = pace.rate
    another = Owner()
    project.join(another, rate_limit=900, max_retry_after=120.0)
    assert pace.rate == rate < 800


def test_the_most_patient_client_says_when_a_wait_is_too_long():
    project = Project()
    first, second = Owner(), Owner()
    project.join(first, rate_limit=None, max_retry_after=1.0)
    project.join(second, rate_limit=None, max_retry_after=60.0)
    assert not project.too_long(None)
    assert not project.too_long(60.0)
    assert project.too_long(60.1)
    project.leave(second)
    assert project.too_long(60.0)
    assert not project.too_long(1.0)


async def test_a_turn_that_comes_nearer_is_not_waited_for_any_longer():
    world, project = World(), project_at(0.01)
    slow = OWNERS.pop()
    fast = Owner()
    project.join(fast, rate_limit=800, max_retry_after=120.0)
    waiting = [world.start(project) for _ in range(2)]
    await settle()
    assert len(world.granted) == 1
    project.leave(slow)
    world.admission.sooner(project)
    await world.pass_time(0.01)
    assert len(world.granted) == 2
    await asyncio.gather(*waiting)


def test_a_project_says_in_a_line_what_state_it_is_in():
    assert repr(project_at(800)) == "<Project pace=800.0/s waiting=0 in_flight=0>"


async def test_a_project_may_be_forgotten_once_its_pace_is_at_rest():
    world, project = World(), project_at(1)
    assert project.forgettable(world.now)
    waiting = [world.start(project) for _ in range(2)]
    await settle()
    assert not project.forgettable(world.now + 3600)
    await world.pass_time(1.1)
    assert not project.forgettable(world.now + 3600)
    world.release(project)
    world.release(project)
    assert not project.forgettable(world.now + 60)
    assert project.forgettable(world.now + 75)
    await asyncio.gather(*waiting)


def test_by_then_the_pace_has_climbed_back_from_wherever_it_was():
    project = project_at(800)
    for second in range(2000):
        now = second * 2.0
        project.pace.throttled(now, departed=now, retry_after=1.99, rng=random.Random(1))
    assert project.pace.rate < 2
    forgettable = next(
        now + wait / 10 for wait in itertools.count() if project.forgettable(now + wait / 10)
    )
    assert project.pace.rate_at(forgettable) == 800


# Event loops


async def test_when_its_event_loop_is_closed_the_project_forgets_who_waited_but_not_its_pace():
    old, project = World(slots=2), project_at(1)
    in_flight = old.admission.admit_now(project, old.now)
    in_flight.written()
    waiting = [old.start(project) for _ in range(5)]
    await settle()
    due = project.pace.due
    project.forget_loop()
    new = World(slots=2)
    assert not new.admission.admit_now(project, new.now)
    fresh = new.start(project, "fresh")
    await settle()
    # The garbage collector finds what is left of the old loop's calls now.
    await end(*waiting)
    in_flight.release()
    assert (project.waiting, project.in_flight) == (1, 0)
    assert project.pace.due == due
    await new.pass_time(1.1)
    assert new.granted == ["fresh"]
    await fresh
    new.release(project)
    new.assert_idle(project)


async def test_stopping_cancels_the_timer():
    world, project = World(), project_at(1)
    assert world.admit_now(project)
    waiting = world.start(project)
    await settle()
    assert world.timers_left == 1
    world.admission.stop()
    world.admission.stop()
    assert world.timers_left == 0
    await end(waiting)


# A fleet's share


async def test_a_call_with_a_timeout_is_refused_by_the_clients_limit_and_not_by_a_small_share():
    world, project = World(), project_at(100)
    project.set_share(1)
    assert world.admit_now(project)
    world.release(project)
    waiting = world.start(project, "in time", deadline=world.now + 0.2)
    await settle()
    assert not waiting.done()
    project.set_share(50)
    world.admission.sooner(project)
    await world.pass_time(0.1)
    assert world.granted == ["in time"]
    await waiting
    world.release(project)
    # At the clients' own limit a hundred calls take a second.
    project.set_share(0)
    crowd = [world.start(project, deadline=world.now + 10) for _ in range(100)]
    await settle()
    with pytest.raises(CallTimeoutError):
        await world.call(project, deadline=world.now + 0.5)
    await end(*crowd)
    world.assert_idle(project)


async def test_a_turn_that_came_sooner_is_not_given_again_at_its_old_time():
    world, project = World(), project_at(1)
    assert world.admit_now(project)
    first, second = world.start(project, "first"), world.start(project, "second")
    await settle()
    project.set_share(0)  # no turn any more; the timer for the old one still runs
    project.set_share(None)
    world.admission.sooner(project)
    project.pace.limit = 100
    world.admission.sooner(project)
    await world.pass_time(3)
    assert world.granted == ["first", "second"]
    await asyncio.gather(first, second)
    for _ in range(3):
        world.release(project)
    world.assert_idle(project)
