"""Jobs in PostgreSQL: how fast they are handed in and done, and what the death of workers costs.

Run it with ``python -m benchmarks.jobs SCENARIO``. Every scenario starts a private PostgreSQL that
syncs to its disk, prints what it measured with the goal beside it, and takes at most four minutes,
``million`` about eight.

``submit``
    A CSV of a million records into the database, its size there, and how long progress takes.
``paced``
    Four projects, each at its own pace of 200 a second, and two workers.
``deaths``
    Twenty projects and four workers, of which a random one is killed every 20 s. Afterwards it is
    counted that nothing was lost, what was sent twice, and how much of the paces was reached.
``million``
    One worker and a million records against nginx, as fast as it can: its memory on the way, and
    the size of the outcomes.

The sandbox's garbage collection is off: a pause of the server's own would let requests pile up and
count as one moment.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from benchmarks import process, sample, server
from sinch_conv_async.jobs import JobStore, run_worker
from sinch_conv_async.sandbox import Sandbox
from tests.whole.fleet.stores import Postgres

MILLION = 1_000_000
LATENCY = 0.02
UNREACHED_RATE = 1e6

FLUSH_EVERY = 0.5
"""Seconds after which a worker writes the outcomes that it has: what its death can cost."""

REPEATS_EVERY, REPEATED = 25, 7
"""Every 25th record is about the message of the record seven before it."""

Goal = tuple[float, float]
"""The least and the most that a figure may be."""


def show(figures: Mapping[str, float], goals: Mapping[str, Goal]) -> None:
    """A line for each figure, with its goal."""
    for name, value in figures.items():
        goal = ""
        if name in goals:
            least, most = goals[name]
            goal = f"{least:g} to {most:g}{'' if least <= value <= most else ': MISSED'}"
        print(f"  {name:58} {round(value, 3):>14,}   {goal}", flush=True)


# A million records


def write_csv(path: Path, records: int) -> None:
    with path.open("w") as file:
        file.write("message_id,metadata\n")
        quoted = '"' + sample.METADATA.replace('"', '""') + '"'
        file.writelines(f"{sample.MESSAGE_ID[:18]}{row:08d},{quoted}\n" for row in range(records))


@contextlib.contextmanager
def csv_of(records: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="sinch-bench-") as folder:
        path = Path(folder, "updates.csv")
        write_csv(path, records)
        yield path


def mib(database: Postgres, table: str) -> float:
    """The size of a job's table with its indexes."""
    return int(database.tell(f"SELECT pg_total_relation_size('sinch_conv.{table}')")) / 2**20


async def submit(database: Postgres, records: int) -> tuple[dict[str, float], dict[str, Goal]]:
    await JobStore(database.url).create_schema()
    with csv_of(records) as path:
        began = time.monotonic()
        job = await JobStore(database.url).submit(path, project_id=sample.PROJECT_ID)
        seconds = time.monotonic() - began
        file_size = path.stat().st_size / 2**20
    async with JobStore(database.url) as store:
        kept = await times_of(store, job, 500)
    fresh = await times_of(JobStore(database.url), job, 100)
    figures = {
        "records a second": records / seconds,
        "size of the CSV, MiB": file_size,
        "size of the records in the database, MiB": mib(database, f"records_{job}"),
        "progress, median, ms": statistics.median(kept),
        "progress, slowest of 500, ms": max(kept),
        "progress on a new connection each time, median, ms": statistics.median(fresh),
    }
    goals: dict[str, Goal] = {
        "records a second": (50_000, 1e9),
        "progress, median, ms": (0, 10),
        "progress, slowest of 500, ms": (0, 10),
    }
    return figures, goals


async def times_of(store: JobStore, job: int, number: int) -> list[float]:
    """Milliseconds that each call of ``status`` took."""
    took = []
    for _ in range(number):
        began = time.perf_counter()
        await store.status(job)
        took.append((time.perf_counter() - began) * 1000)
    return took


# Workers


@attrs.frozen
class Worker:
    """A worker process: which projects it has keys of, and how many jobs it does at a time."""

    origin: str
    database: str
    projects: tuple[str, ...]
    jobs: int

    def credentials(self) -> list[Any]:
        return [
            {
                "project_id": project,
                "key_id": sample.KEY_ID,
                "key_secret": sample.KEY_SECRET,
                "conversation_origin": self.origin,
                "auth_origin": self.origin,
            }
            for project in self.projects
        ]

    async def started(self) -> asyncio.subprocess.Process:
        described = json.dumps(attrs.asdict(self))
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.jobs", "--work", described),
            cwd=process.ROOT,
            stdout=subprocess.DEVNULL,
        )


async def work(worker: Worker) -> None:
    """The process itself; SIGTERM ends it."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await run_worker(worker.database, credentials=worker.credentials(), jobs=worker.jobs, stop=stop)


@contextlib.asynccontextmanager
async def working(worker: Worker, number: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """So many processes. Who kills one may put another in its place."""
    processes = [await worker.started() for _ in range(number)]
    try:
        yield processes
    finally:
        for one in processes:
            with contextlib.suppress(ProcessLookupError):
                one.terminate()
        await asyncio.gather(*(one.wait() for one in processes))


async def until_ended(store: JobStore, jobs: Sequence[int]) -> None:
    for job in jobs:
        while not (await store.status(job)).final:
            await asyncio.sleep(0.2)


# Paces


@contextlib.asynccontextmanager
async def sandbox_of(projects: Sequence[str], rate: int) -> AsyncIterator[Sandbox]:
    """A sandbox that allows each project its own pace."""
    key: dict[str, Any] = {
        "key_id": sample.KEY_ID,
        "key_secret": sample.KEY_SECRET,
        "rate_limit": rate,
    }
    async with Sandbox(
        project_id=projects[0], latency=LATENCY, auto_create=True, token_rate=None, **key
    ) as sandbox:
        for project in projects[1:]:
            sandbox.add_project(project, **key)
        yield sandbox


def updates_of(project: str, records: int) -> Iterator[tuple[str, str]]:
    for number in range(records):
        about = number - REPEATED if number % REPEATS_EVERY == REPEATS_EVERY - 1 else number
        yield f"{project}-{about:08d}", f"{project} {number}"


async def submitted(store: JobStore, projects: Sequence[str], records: int, rate: int) -> list[int]:
    return [
        await store.submit(updates_of(project, records), project_id=project, rate_limit=rate)
        for project in projects
    ]


def first_applied(sandbox: Sandbox) -> list[float]:
    """When each record was applied, not counting those that were sent again."""
    seen: set[tuple[str | None, str | None]] = set()
    times = []
    for request in sandbox.requests:
        update = (request.message_id, request.metadata)
        if request.applied and update not in seen:
            seen.add(update)
            times.append(request.time)
    return times


def reached(times: Sequence[float], settled: float, seconds: float, paces: float) -> float:
    """The share of the paces that was reached from ``settled`` on."""
    begins = times[0] + settled
    ends = times[0] + seconds
    return sum(begins <= at < ends for at in times) / (ends - begins) / paces


async def paced(database: Postgres) -> tuple[dict[str, float], dict[str, Goal]]:
    projects, rate, seconds = [f"project-{n}" for n in range(4)], 200, 40
    await JobStore(database.url).create_schema()
    async with JobStore(database.url) as store, sandbox_of(projects, rate) as sandbox:
        await submitted(store, projects, rate * (seconds + 5), rate)
        worker = Worker(sandbox.origin, database.url, tuple(projects), 2)
        async with working(worker, 2):
            await sandbox.wait_for_requests(1)
            await asyncio.sleep(seconds)
        figures = {
            "reached, of the sum of the paces": reached(
                first_applied(sandbox), 5.0, seconds - 1, rate * len(projects)
            ),
            "answered 429": sum(request.status == 429 for request in sandbox.requests),
            "requests": len(sandbox.requests),
        }
    return figures, {"reached, of the sum of the paces": (0.95, 1.01)}


# Deaths

DEATHS_FOR, DEATH_EVERY = 180, 20
WORKERS, JOBS = 4, 7
"""So that three workers can do the jobs of all twenty projects."""


async def deaths(
    database: Postgres, rate: int, seed: int
) -> tuple[dict[str, float], dict[str, Goal]]:
    projects = [f"project-{n:02d}" for n in range(20)]
    rng = random.Random(seed)
    killed = 0
    await JobStore(database.url).create_schema()
    async with JobStore(database.url) as store, sandbox_of(projects, rate) as sandbox:
        jobs = await submitted(store, projects, rate * DEATHS_FOR, rate)
        worker = Worker(sandbox.origin, database.url, tuple(projects), JOBS)
        async with working(worker, WORKERS) as processes:
            await sandbox.wait_for_requests(1)
            for _ in range(DEATHS_FOR // DEATH_EVERY):
                await asyncio.sleep(DEATH_EVERY)
                chosen = rng.randrange(WORKERS)
                processes[chosen].kill()
                await processes[chosen].wait()
                processes[chosen] = await worker.started()
                killed += 1
            await until_ended(store, jobs)
        figures = {"workers killed": killed, **after_deaths(database, sandbox, projects, rate)}
        statuses = [await store.status(job) for job in jobs]
    figures["jobs that are not done"] = sum(status.state != "done" for status in statuses)
    figures["records without an outcome, or with another one than updated"] = sum(
        status.records - status.updated for status in statuses
    )
    goals: dict[str, Goal] = {
        "reached, of the sum of the paces": (0.9, 1.01),
        "records that never arrived": (0, 0),
        "messages with the wrong metadata": (0, 0),
        "outcomes beside the one of each record": (0, 0),
        "sent twice": (0, figures["sent twice, at most what was not flushed"]),
        "jobs that are not done": (0, 0),
        "records without an outcome, or with another one than updated": (0, 0),
    }
    return figures, goals


def pauses(sandbox: Sandbox) -> list[float]:
    """Seconds of more than one between two requests of a project."""
    last: dict[str | None, float] = {}
    found = []
    for request in sandbox.requests:
        before = last.get(request.project_id, request.time)
        if request.time - before > 1:
            found.append(request.time - before)
        last[request.project_id] = request.time
    return found


def after_deaths(
    database: Postgres, sandbox: Sandbox, projects: Sequence[str], rate: int
) -> dict[str, float]:
    """What the sandbox and the tables say about a run in which workers died."""
    records = rate * DEATHS_FOR
    wanted = {
        name: metadata for project in projects for name, metadata in updates_of(project, records)
    }
    wrong = sum(
        name not in sandbox.messages or sandbox.messages[name].metadata != metadata
        for name, metadata in wanted.items()
    )
    applied = Counter(
        (request.message_id, request.metadata) for request in sandbox.requests if request.applied
    )
    counted, distinct = database.tell(
        "SELECT count(*), count(DISTINCT (job, record)) FROM sinch_conv.outcomes"
    ).split("|")
    # To take a job raises its epoch, and so does to put it back.
    lost = int(database.tell("SELECT sum((epoch - 1) / 2) FROM sinch_conv.jobs"))
    under_way = rate * LATENCY + 1
    times = first_applied(sandbox)
    found = pauses(sandbox)
    return {
        "reached, of the sum of the paces": reached(times, 10.0, DEATHS_FOR, rate * len(projects)),
        "seconds until all jobs were done": times[-1] - times[0],
        "records that never arrived": records * len(projects) - len(applied),
        "messages with the wrong metadata": wrong,
        "outcomes beside the one of each record": int(counted) - int(distinct),
        "jobs that lost their worker": lost,
        "pause of a job that lost its worker, median, s": statistics.median(found) if found else 0,
        "longest pause, s": max(found, default=0),
        "sent twice": sum(applied.values()) - len(applied),
        "sent twice, at most what was not flushed": lost * (rate * FLUSH_EVERY + under_way),
        "answered 429": sum(request.status == 429 for request in sandbox.requests),
        "requests": len(sandbox.requests),
    }


# A worker's memory


def resident(pid: int, what: str = "VmRSS") -> float:
    """MiB of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} is gone")


async def million(database: Postgres, records: int) -> tuple[dict[str, float], dict[str, Goal]]:
    await JobStore(database.url).create_schema()
    with csv_of(records) as path:
        job = await JobStore(database.url).submit(
            path, project_id=sample.PROJECT_ID, rate_limit=UNREACHED_RATE
        )
    early, later, took = 0.0, 0.0, []
    with server.nginx() as origin:
        worker = Worker(origin, database.url, (sample.PROJECT_ID,), 1)
        async with JobStore(database.url) as store, working(worker, 1) as [running]:
            while True:
                began = time.perf_counter()
                status = await store.status(job)
                took.append((time.perf_counter() - began) * 1000)
                if status.final:
                    break
                if status.updated < records / 10:
                    early = max(early, resident(running.pid))
                else:
                    later = max(later, resident(running.pid))
                await asyncio.sleep(0.5)
    figures = {
        "updated": status.updated,
        "updates a second": status.updated / status.seconds,
        "memory of the worker, first tenth, MiB": early,
        "memory of the worker, later, MiB": later,
        "growth, MiB": later - early,
        "progress while it runs, median, ms": statistics.median(took),
        "progress while it runs, slowest, ms": max(took),
        "size of the records in the database, MiB": mib(database, f"records_{job}"),
        "size of the outcomes in the database, MiB": mib(database, f"outcomes_{job}"),
    }
    goals: dict[str, Goal] = {
        "updated": (records, records),
        "growth, MiB": (-1e9, 5),
        "progress while it runs, median, ms": (0, 10),
    }
    return figures, goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", nargs="?", choices=["submit", "paced", "deaths", "million"])
    parser.add_argument("--records", type=int, default=MILLION, help="of submit and million")
    parser.add_argument("--rate", type=int, default=40, help="of each project, in deaths")
    parser.add_argument("--seed", type=int, default=1, help="of who dies")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        asyncio.run(work(Worker(**json.loads(given.work))))
        return
    with Postgres("-c", "fsync=on") as database:
        print(f"{given.scenario} (load average {os.getloadavg()[0]:.1f})", flush=True)
        if given.scenario == "submit":
            figures, goals = asyncio.run(submit(database, given.records))
        elif given.scenario == "million":
            figures, goals = asyncio.run(million(database, given.records))
        else:
            gc.disable()
            figures, goals = asyncio.run(
                paced(database)
                if given.scenario == "paced"
                else deaths(database, given.rate, given.seed)
            )
        show(figures, goals)


if __name__ == "__main__":
    main()
