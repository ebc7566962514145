"""What the pace does against servers that count in different ways: a simulation, no sockets, no
waiting.

Run it with ``python -m benchmarks.pace_simulation``. It drives the real ``Pace`` in simulated time:
requests, answers, wake-ups of an event loop a millisecond coarse. The processes know nothing of
each other. Every figure is of seconds 10 to 60 unless said otherwise. What comes out does not
depend on the machine, and a run takes about a minute of it; ``--short`` leaves out the shapes that
were dropped. ``--picture`` prints the picture of docs/explanation/pace.rst instead.

The first table is the law as it is; the others, shapes that were tried and dropped. Figures of the
first are quoted, and explained, in docs/evidence/pace.rst.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from sinch_conv_async._core.noise import Noise, Trial
from sinch_conv_async._core.pace import Pace

SECONDS = 60
SETTLED = 10
LIMIT = 800
MAX_DELAY = 20.0  # seconds that a call backs off at most, as in RetryPolicy
TICK = 0.001  # the granularity of an event loop's timers
HALF_TO_ALL = (0.5, 1.0)
ROUND_TRIPS = (0.001, 0.010, 0.050, 0.200)  # seconds
STALLS = (5.0, 0.010, 0.050)  # stalls a second, their shortest, their longest
BUSY = (8.0, 0.005, 0.060)  # of client and server alike, on a machine that both share with others


class Server(Protocol):
    def allows(self, now: float) -> bool: ...


class SlidingWindow:
    """So many in any second, refused requests counted or not."""

    def __init__(self, limit: int, *, refused_count: bool = False) -> None:
        self.limit = limit
        self.refused_count = refused_count
        self.log: deque[float] = deque()

    def allows(self, now: float) -> bool:
        while self.log and self.log[0] <= now - 1.0:
            self.log.popleft()
        allowed = len(self.log) < self.limit
        if allowed or self.refused_count:
            self.log.append(now)
        return allowed


class FixedWindow:
    """So many from one full second to the next."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.second = -1
        self.count = 0

    def allows(self, now: float) -> bool:
        if int(now) != self.second:
            self.second = int(now)
            self.count = 0
        self.count += 1
        return self.count <= self.limit


class TokenBucket:
    """Tokens that drip in at a rate, up to a burst."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = float(burst)
        self.filled = 0.0

    def allows(self, now: float) -> bool:
        self.tokens = min(self.burst, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Stalling:
    """A server that has stalls as well: what arrives in one is counted at its end, all at once."""

    def __init__(self, server: Server, *, seed: int) -> None:
        self.server = server
        self.rng = random.Random(seed)
        self.stalled = self.resumed = 0.0

    def allows(self, now: float) -> bool:
        often, shortest, longest = BUSY
        while self.resumed < now:
            self.stalled = self.resumed + self.rng.expovariate(often)
            self.resumed = self.stalled + self.rng.uniform(shortest, longest)
        return self.server.allows(self.resumed if self.stalled <= now else now)


class Unlimited:
    def allows(self, now: float) -> bool:
        return True


class Noisy:
    """Refuses a share of the requests at random, whatever the pace; the rest goes to the server."""

    def __init__(self, server: Server, share: float, *, seed: int) -> None:
        self.server = server
        self.share = share
        self.rng = random.Random(seed)

    def allows(self, now: float) -> bool:
        return self.rng.random() >= self.share and self.server.allows(now)


class Nodes:
    """Gateway nodes that count separately, each a sliding window of its part; requests go to one at
    random.
    """

    def __init__(self, limit: int, count: int, *, seed: int) -> None:
        self.nodes = [SlidingWindow(limit // count) for _ in range(count)]
        self.rng = random.Random(seed)

    def allows(self, now: float) -> bool:
        return self.rng.choice(self.nodes).allows(now)


class Foreign:
    """Other callers of the project who never give way; how many of their requests were allowed and
    refused.
    """

    def __init__(self, gaps: Callable[[random.Random], float], burst: int = 1) -> None:
        self.gaps = gaps
        self.burst = burst
        self.allowed = [0] * SECONDS
        self.refused = [0] * SECONDS

    def left(self, first: int = SETTLED, last: int = SECONDS) -> float:
        """Requests a second that they leave to others."""
        return LIMIT - sum(self.allowed[first:last]) / (last - first)

    def refused_share(self, first: int = SETTLED, last: int = SECONDS) -> float:
        """In percent."""
        refused = sum(self.refused[first:last])
        return 100 * refused / (refused + sum(self.allowed[first:last]))


def poisson() -> Foreign:
    """300 requests a second at random."""
    return Foreign(lambda rng: rng.expovariate(300))


def bursts() -> Foreign:
    """400 requests at once, every five seconds."""
    return Foreign(lambda rng: 5.0, 400)


@dataclass
class Client:
    """One process with its own pace; ``demand`` is in calls a second, infinite when there is always
    one waiting.
    """

    shape: type[Pace] = Pace
    limit: float = LIMIT
    start: float = 0.0
    demand: float = math.inf
    round_trip: float = 0.010
    stalls: tuple[float, float, float] | None = None

    def begin(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.start += self.rng.uniform(0.0, 0.3)
        self.pace = self.shape(self.limit)
        self.waiting = 0
        self.retries: deque[int] = deque()  # of each, how often it has been refused
        self.wakes: float | None = None
        self.allowed = [0] * SECONDS
        self.refused = [0] * SECONDS
        self.most_refusals = 0  # of one call
        self._stalled = self._resumed = self.start

    def awake(self, when: float) -> float:
        """When the event loop gets round to what happens at ``when``."""
        if self.stalls is None:
            return when
        often, shortest, longest = self.stalls
        while self._resumed < when:
            self._stalled = self._resumed + self.rng.expovariate(often)
            self._resumed = self._stalled + self.rng.uniform(shortest, longest)
        return self._resumed if self._stalled <= when else when

    def trip(self) -> float:
        """Half a round trip and its jitter, a tenth of the round trip on average and now and then
        several times that.
        """
        return self.round_trip / 2 + self.rng.expovariate(10 / self.round_trip)


def simulate(
    server: Server,
    clients: Sequence[Client],
    *,
    retry_after: float | None = None,
    backoff: tuple[float, float] | None = HALF_TO_ALL,
    foreign: Foreign | None = None,
    seed: int = 1,
) -> Sequence[Client]:
    """Run the clients against the server; a call that is refused again waits such a share of its
    backoff, or none, before it rejoins the line.
    """
    events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
    order = itertools.count()

    def at(when: float, what: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(events, (when, next(order), what, arguments))

    def wake_at(client: Client, when: float) -> None:
        if client.wakes is None or when < client.wakes:
            client.wakes = when
            at(when, wake, client)

    def wake(now: float, client: Client) -> None:
        if client.wakes is None or now < client.wakes:
            return
        client.wakes = None
        pace = client.pace
        while pace.due <= now:
            refusals = 0
            if client.retries:
                refusals = client.retries.popleft()
            elif client.demand < math.inf:
                if not client.waiting:
                    pace.idle()
                    return
                client.waiting -= 1
            pace.depart(now)
            at(now + client.trip(), arrive, client, now, refusals)
        wake_at(client, client.awake(pace.due + client.rng.random() * TICK))

    def arrive(now: float, client: Client, departed: float, refusals: int) -> None:
        if server.allows(now):
            client.allowed[int(now)] += 1
        else:
            client.refused[int(now)] += 1
            at(client.awake(now + client.trip()), refuse, client, departed, refusals + 1)

    def refuse(now: float, client: Client, departed: float, refusals: int) -> None:
        client.pace.throttled(now, departed=departed, retry_after=retry_after, rng=client.rng)
        client.most_refusals = max(client.most_refusals, refusals)
        if refusals == 1 or backoff is None:
            rejoin(now, client, refusals)
        else:
            delay = min(MAX_DELAY, 0.5 * 2 ** (refusals - 2))
            at(now + client.rng.uniform(*backoff) * delay, rejoin, client, refusals)

    def rejoin(now: float, client: Client, refusals: int) -> None:
        client.retries.append(refusals)
        wake_at(client, client.awake(max(now, client.pace.due)))

    def call(now: float, client: Client) -> None:
        client.waiting += 1
        at(now + client.rng.expovariate(client.demand), call, client)
        wake_at(client, client.awake(max(now, client.pace.due)))

    def others(now: float, foreign: Foreign, rng: random.Random) -> None:
        for _ in range(foreign.burst):
            (foreign.allowed if server.allows(now) else foreign.refused)[int(now)] += 1
        at(now + foreign.gaps(rng), others, foreign, rng)

    if foreign is not None:
        at(0.5, others, foreign, random.Random(seed))
    for index, client in enumerate(clients):
        client.begin(seed * 1000 + index)
        if client.demand < math.inf:
            at(client.start, call, client)
        else:
            wake_at(client, client.start)
    while events:
        now, _, what, arguments = heapq.heappop(events)
        if now >= SECONDS:
            break
        what(now, *arguments)
    return clients


class Figures(NamedTuple):
    """Percentages, but for how often one call was refused at most (from the first second on)."""

    reached: float
    refused: float
    least: float
    most: float
    most_refusals: int

    def __str__(self) -> str:
        return f"{self.reached:8.1f}{self.refused:8.2f}{self.least:8.0f}{self.most:8.0f}{self.most_refusals:9d}"


def fair_shares(capacity: float, demands: Iterable[float]) -> list[float]:
    """Who wants less than an even share gets it; the rest share what is left evenly (max-min
    fairness).
    """
    wanted = list(demands)
    shares = [0.0] * len(wanted)
    for left, index in zip(
        range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True
    ):
        shares[index] = min(wanted[index], capacity / left)
        capacity -= shares[index]
    return shares


def measure(
    clients: Sequence[Client], capacity: float = LIMIT, *, first: int = SETTLED, last: int = SECONDS
) -> Figures:
    allowed = [sum(client.allowed[first:last]) for client in clients]
    refused = sum(sum(client.refused[first:last]) for client in clients)
    fair = fair_shares(capacity, (min(client.demand, client.limit) for client in clients))
    parts = [
        count / (last - first) / share * 100 for count, share in zip(allowed, fair, strict=True)
    ]
    return Figures(
        sum(allowed) / (last - first) / sum(fair) * 100,
        refused / (sum(allowed) + refused) * 100,
        min(parts),
        max(parts),
        max(client.most_refusals for client in clients),
    )


def worst(figures: Iterable[Figures]) -> Figures:
    columns = list(zip(*figures, strict=True))
    return Figures(
        min(columns[0]), max(columns[1]), min(columns[2]), max(columns[3]), max(columns[4])
    )


def line(name: str, figures: Figures) -> None:
    print(f"{name:60}{figures}", flush=True)


def same(count: int, **options: Any) -> list[Client]:
    return [Client(**options) for _ in range(count)]


def shape(**constants: Any) -> type[Pace]:
    return type("Shape", (Pace,), {"__slots__": (), **constants})


class FirstMeasured(Pace):
    """The first shape that told noise: believes two trials in a row, each by itself, and ignores
    what the falls do not change.
    """

    __slots__ = ()

    def _begin(self, trial: Trial) -> None:
        super()._begin(trial)
        noise = self._noise
        if not isinstance(noise, TwoInARow):
            self._noise = TwoInARow()


class TwoInARow(Noise):
    """Refusals are noise if two trials in a row find at least half of the share around the fall."""

    __slots__ = ("_agreed",)

    def forget(self) -> None:
        super().forget()
        self._agreed = 0

    def learn(self, trial: Trial, *, may_be_noise: bool) -> None:
        around, after = trial.around.share, trial.after.share
        self._agreed = self._agreed + 1 if after and after >= 0.5 * around else 0
        if not after:
            self.share = 0.0
        elif self._agreed >= 2:
            self.share = after


class Deaf(Noise):
    """Knows of no noise: every refusal is congestion."""

    __slots__ = ()

    def learn(self, trial: Trial, *, may_be_noise: bool) -> None:
        """Learns nothing."""


class CongestionOnly(Pace):
    """The same falls and climbs, and no noise."""

    __slots__ = ()

    def _begin(self, trial: Trial) -> None:
        super()._begin(trial)
        self._noise = Deaf()


class EvenSpacing(Pace):
    """Each departure waits an interval from the one before, whenever that was."""

    __slots__ = ()

    def depart(self, now: float) -> None:
        self.due = now + 1 / LIMIT


def busy(count: int, tried: type[Pace] = Pace) -> Figures:
    """Client and server on one busy machine; the worst of three runs."""
    return worst(
        measure(
            simulate(
                Stalling(SlidingWindow(LIMIT), seed=seed),
                same(count, shape=tried, round_trip=0.005, stalls=BUSY),
                seed=seed,
            )
        )
        for seed in (1, 2, 3)
    )


def the_law() -> None:
    print(f"{'':60}{'reached':>8}{'429':>8}{'least':>8}{'most':>8}{'refusals':>9}")
    print(f"{'':60}{'%':>8}{'%':>8}{'% fair':>8}{'% fair':>8}{'a call':>9}")
    for round_trip in ROUND_TRIPS:
        for count in (1, 2, 3, 5, 10):
            seeds = range(1, 6) if count == 3 else range(1, 2)
            line(
                f"sliding window, {count} x {round_trip * 1000:.0f} ms{', worst of 5 runs' if count == 3 else ''}",
                worst(
                    measure(
                        simulate(
                            SlidingWindow(LIMIT), same(count, round_trip=round_trip), seed=seed
                        )
                    )
                    for seed in seeds
                ),
            )
    for count in (1, 3):
        line(f"the same on a busy machine, {count} x 5 ms, worst of 3 runs", busy(count))
    servers: list[tuple[str, Callable[[], Server], int, float | None]] = [
        (
            "sliding window, refused ones count",
            lambda: SlidingWindow(LIMIT, refused_count=True),
            LIMIT,
            None,
        ),
        ("sliding window of half of it", lambda: SlidingWindow(LIMIT // 2), LIMIT // 2, None),
        ("sliding window, Retry-After: 1", lambda: SlidingWindow(LIMIT), LIMIT, 1.0),
        ("fixed window", lambda: FixedWindow(LIMIT), LIMIT, None),
        ("token bucket, burst 800", lambda: TokenBucket(LIMIT, 800), LIMIT, None),
        ("token bucket, burst 80", lambda: TokenBucket(LIMIT, 80), LIMIT, None),
        ("token bucket, burst 30", lambda: TokenBucket(LIMIT, 30), LIMIT, None),
    ]
    for name, server, capacity, retry_after in servers:
        for round_trip in (0.010, 0.200):
            for count in (1, 3):
                clients = simulate(
                    server(), same(count, round_trip=round_trip), retry_after=retry_after
                )
                line(f"{name}, {count} x {round_trip * 1000:.0f} ms", measure(clients, capacity))
    for round_trip in (0.010, 0.200):
        clients = simulate(
            SlidingWindow(LIMIT),
            [*same(2, round_trip=round_trip), Client(start=30.0, round_trip=round_trip)],
        )
        for first, last in ((30, 35), (35, 40), (40, 60)):
            everyone = measure(clients, first=first, last=last)
            newcomer = sum(clients[2].allowed[first:last]) / (last - first) / (LIMIT / 3) * 100
            line(
                f"third comes at 30 s, {first} to {last} s, {round_trip * 1000:.0f} ms (it: {newcomer:.0f} %)",
                everyone,
            )
        clients = simulate(
            SlidingWindow(LIMIT),
            [*same(2, round_trip=round_trip), Client(demand=100.0, round_trip=round_trip)],
        )
        line(f"third wants only 100 a second, {round_trip * 1000:.0f} ms", measure(clients))
        for count in (1, 3):
            clients = simulate(
                SlidingWindow(LIMIT), same(count, round_trip=round_trip, stalls=STALLS)
            )
            line(f"stalling event loops, {count} x {round_trip * 1000:.0f} ms", measure(clients))
        clients = simulate(TokenBucket(LIMIT, 30), same(1, round_trip=round_trip, stalls=STALLS))
        line(f"stalling event loop, burst 30, 1 x {round_trip * 1000:.0f} ms", measure(clients))


SEEDS = range(1, 6)
SHARES = (0.005, 0.01, 0.02, 0.04)


def noisy(count: int, share: float, tried: type[Pace] = Pace) -> Figures:
    """A sliding window that also refuses a share at random."""
    return worst(
        measure(
            simulate(
                Noisy(SlidingWindow(LIMIT), share, seed=seed),
                same(count, shape=tried, round_trip=0.050),
                seed=seed,
            )
        )
        for seed in SEEDS
    )


def nodes(count: int, tried: type[Pace] = Pace) -> Figures:
    """One process and so many gateway nodes."""
    return worst(
        measure(
            simulate(
                Nodes(LIMIT, count, seed=seed), same(1, shape=tried, round_trip=0.050), seed=seed
            )
        )
        for seed in SEEDS
    )


def beside(others: Callable[[], Foreign], tried: type[Pace] = Pace) -> tuple[Figures, float]:
    """One process beside callers who never give way: its part of what they leave, and their share
    refused in percent.
    """
    figures, refused = [], []
    for seed in SEEDS:
        foreign = others()
        clients = simulate(
            SlidingWindow(LIMIT), same(1, shape=tried, round_trip=0.050), foreign=foreign, seed=seed
        )
        figures.append(measure(clients, foreign.left()))
        refused.append(foreign.refused_share())
    return worst(figures), max(refused)


def noise_and_neighbours(tried: type[Pace] = Pace) -> None:
    """50 ms, each row the worst of five runs."""
    for count in (1, 3):
        for share in SHARES:
            line(f"{100 * share:g} % refused at random, {count}", noisy(count, share, tried))
    for count in (4, 16):
        line(f"{count} gateway nodes, 1", nodes(count, tried))
    for name, others in (("Poisson, 300 a second", poisson), ("400 at once every 5 s", bursts)):
        figures, refused = beside(others, tried)
        line(f"beside others: {name} ({refused:.1f} % of theirs refused)", figures)
    for round_trip in ROUND_TRIPS:
        for count in (3, 10):
            line(
                f"sliding window, {count} x {round_trip * 1000:.0f} ms",
                worst(
                    measure(
                        simulate(
                            SlidingWindow(LIMIT),
                            same(count, shape=tried, round_trip=round_trip),
                            seed=seed,
                        )
                    )
                    for seed in SEEDS
                ),
            )


def noise_or_congestion() -> None:
    """The law, and two shapes beside it, at what they are to tell apart."""
    for name, tried in (
        ("The law", Pace),
        ("Two trials in a row, each by itself", FirstMeasured),
        ("Every refusal is congestion", CongestionOnly),
    ):
        print(f"\n{name}; 50 ms unless said; worst of 5 runs")
        noise_and_neighbours(tried)


def what_did_not_pay() -> None:
    print(
        "\nStalls of 10 to 50 ms, five a second, a server without limits: share of 800 that departs, %"
    )
    for name, tried in (
        ("the law", Pace),
        ("the window alone", shape(HEADROOM=-0.9)),
        ("leaky bucket that makes up for 20 ms", shape(HEADROOM=0.0, CATCH_UP=0.020)),
        ("leaky bucket that makes up for 2 ms", shape(HEADROOM=0.0, CATCH_UP=0.002)),
        ("an interval from one departure to the next", EvenSpacing),
    ):
        for stalls in (None, STALLS):
            clients = simulate(Unlimited(), same(1, shape=tried, stalls=stalls))
            print(
                f"{name + (', no stalls' if stalls is None else ''):60}{measure(clients).reached:8.1f}",
                flush=True,
            )
    print("\nSliding window; worst of 1, 10, 50 and 200 ms, and on a busy machine")
    for name, tried in (
        ("the law", Pace),
        ("no headroom", shape(HEADROOM=0.0)),
        ("to what is let through, whatever it is", shape(DECREASE_FACTOR=1.0)),
        ("to 0.95 of what is let through", shape(DECREASE_FACTOR=0.95)),
        ("pauses of 0.0125 s only", shape(DEEPEST=0)),
        ("no bound on the fall within a second", shape(LEAST=0.0)),
        ("half the climb", shape(INCREASE_PER_SECOND=0.013)),
        ("double the climb", shape(INCREASE_PER_SECOND=0.052)),
    ):
        for count in (1, 3):
            line(
                f"{name}, {count}",
                worst(
                    measure(
                        simulate(
                            SlidingWindow(LIMIT), same(count, shape=tried, round_trip=round_trip)
                        )
                    )
                    for round_trip in ROUND_TRIPS
                ),
            )
            line(f"{name}, {count}, busy machine", busy(count, tried))
    print(
        "\nSliding window, three processes: what a call does that is refused a second time; worst of 5 runs"
    )
    for name, backoff in (
        ("waits half to all of 0.5 s, 1 s, 2 s", HALF_TO_ALL),
        ("waits up to 0.5 s, 1 s, 2 s (full jitter)", (0.0, 1.0)),
        ("rejoins the line at once", None),
    ):
        for round_trip in ROUND_TRIPS:
            line(
                f"{name}, {round_trip * 1000:.0f} ms",
                worst(
                    measure(
                        simulate(
                            SlidingWindow(LIMIT),
                            same(3, round_trip=round_trip),
                            backoff=backoff,
                            seed=seed,
                        )
                    )
                    for seed in range(1, 6)
                ),
            )


PICTURE: Sequence[tuple[str, Callable[[], Sequence[Client]]]] = (
    (
        "alone, 1 % refused at random",
        lambda: simulate(
            Noisy(SlidingWindow(LIMIT), 0.01, seed=2), same(1, round_trip=0.050), seed=2
        ),
    ),
    (
        "three that start together",
        lambda: simulate(SlidingWindow(LIMIT), same(3, round_trip=0.050), seed=2),
    ),
    (
        "two, and a third from second 30 on",
        lambda: simulate(
            SlidingWindow(LIMIT),
            [*same(2, round_trip=0.050), Client(start=30.0, round_trip=0.050)],
            seed=2,
        ),
    ),
)


DESCRIPTION = (
    "Above, one process that meets 1 % of random refusals sends 770 to 800 requests a second. In "
    "the middle, three processes that start together send 240 to 305 each. Below, two processes "
    "send 370 to 430 each until second 30. Then a third comes, and within five seconds each of the "
    "three sends 250 to 295."
)


def picture() -> str:
    """An SVG of what each process sends in each second, in three scenarios."""
    width, height, margin = 600, 130, 44
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 2 * margin} {3 * (height + margin) + 10}" '
        'role="img" font-family="sans-serif" font-size="12" fill="currentColor">',
        "<title>Requests a second that each process sends, in three scenarios</title>",
        f"<desc>{DESCRIPTION}</desc>",
    ]
    for row, (name, run) in enumerate(PICTURE):
        top = row * (height + margin) + 24
        parts.append(f'<text x="{margin}" y="{top - 8}">{name}</text>')
        for value in (0, 400, 800):
            y = top + height * (1 - value / LIMIT)
            parts.append(
                f'<line x1="{margin}" y1="{y:.1f}" x2="{margin + width}" y2="{y:.1f}" stroke="currentColor" opacity="0.2"/>'
                f'<text x="{margin - 6}" y="{y + 4:.1f}" text-anchor="end">{value}</text>'
            )
        for client in run():
            points = [
                (second, client.allowed[second] + client.refused[second])
                for second in range(math.ceil(client.start), SECONDS)
            ]
            line = " ".join(
                f"{margin + width * second / SECONDS:.1f},{top + height * (1 - min(sent, LIMIT) / LIMIT):.1f}"
                for second, sent in points
            )
            parts.append(
                f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
            )
        parts.append(
            f'<text x="{margin + width}" y="{top + height + 14}" text-anchor="end">{SECONDS} s</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    if "--picture" in sys.argv[1:]:
        print(picture(), end="")
        sys.exit()
    the_law()
    noise_or_congestion()
    if "--short" not in sys.argv[1:]:
        what_did_not_pay()
