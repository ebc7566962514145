"""The pages about jobs: what is to be typed is run, in order, with a real PostgreSQL."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async.jobs import JobStore
from tests.commands import COMMAND, Running, environment_of
from tests.whole.jobs.database import PROJECT, until_ended, until_state, working
from tests.whole.test_how_to import MARK, rough, steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sinch_conv_async.sandbox import Sandbox
    from tests.whole.fleet.stores import Postgres
    from tests.whole.test_how_to import Step

pytestmark = pytest.mark.needs_program("initdb")

ROOT = Path(__file__).parent.parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial" / "jobs.rst"
GUIDE = ROOT / "docs" / "how-to" / "jobs.rst"
REFERENCE = ROOT / "docs" / "reference" / "jobs.rst"

# The shell's word on its own jobs, and a line of progress.
BY_THE_WAY = re.compile(
    r"\[\d+\]|.* Killed .*|[\d,]+ of [\d,]+ \([\d.]+ %\), [\d,]+/s, [\d,]+ failed(, [\d:]+ left)?$"
)

# The container is a cluster that runs already.
DOCKER = """#!/bin/sh
case $1 in
  run) echo 49f5c2b1 ;;
  exec) shift 2; test "$1" = pg_isready ;;
  rm) echo jobs-db ;;
esac
"""

# Ctrl-C is pressed once the job is some way on.
INTERRUPTED = """
{command} & following=$!
until sinch-conv jobs status 1 | grep -Eq '^updated +[0-9]+,'; do sleep 0.1; done
kill -INT $following; wait $following"""

# What a reader does without knowing: looks whether it is there, before typing on.
UNTIL_THERE = """{command}
until [ "$(wc -l < sandbox.env)" -ge 5 ]; do sleep 0.05; done"""


def shell_of(step: Step, url: str) -> str:
    """What is run for a step of the page."""
    if step.command.startswith(("python3 -m venv", ". .venv", "pip install")):
        return ":"
    if step.command.startswith("export SINCH_CONV_DATABASE="):
        return f"export SINCH_CONV_DATABASE={shlex.quote(url)}"
    if "^C" in step.says:
        return INTERRUPTED.format(command=step.command)
    if step.command.startswith("sinch-conv sandbox"):
        return UNTIL_THERE.format(command=step.command)
    return step.command


def programs(folder: Path, **scripts: str) -> Path:
    """A folder of programs for a shell's PATH."""
    folder.mkdir()
    for name, text in scripts.items():
        program = folder / name.replace("_", "-")
        program.write_text(text)
        program.chmod(0o755)
    return folder


async def typed(told: Sequence[Step], url: str, folder: Path) -> list[str]:
    """What a shell says to each step, both its streams together."""
    command = f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n'
    path = programs(folder / "bin", sinch_conv=command, docker=DOCKER)
    environment = environment_of(None)
    environment["PATH"] = f"{path}:{environment['PATH']}"
    # `mark` keeps the exit code for the reader's `echo $?`.
    script = f'exec 2>&1; set -m; mark() {{ code=$?; echo "{MARK}"; return $code; }}\n'
    script += "".join(f"{shell_of(step, url)}\nmark\n" for step in told)
    async with Running(["-c", script], environment, folder, ("bash",)) as shell:
        ended = await shell.ends()
    *said, last = ended.out.split(f"{MARK}\n")
    assert len(said) == len(told), last
    return said


async def test_the_tutorial_can_be_followed_word_for_word(empty_url: str, tmp_path: Path) -> None:
    told = list(steps(TUTORIAL.read_text("utf-8")))
    assert len(told) > 20
    for step, text in zip(told, await typed(told, empty_url, tmp_path), strict=True):
        expected = [
            rough(line) for line in step.says if line != "^C" and not BY_THE_WAY.match(line)
        ]
        found = [rough(line) for line in text.splitlines() if not BY_THE_WAY.match(line)]
        if step.command.startswith("docker run"):
            expected = found  # a long number
        assert sorted(found) == sorted(expected), f"{step.command}\n{text}"


async def test_the_guide_to_operating_jobs_works_as_it_says(
    cluster: Postgres, sandbox: Sandbox, tmp_path: Path
) -> None:
    """Its roles, its grants, its queries, its backup and its deletion, on jobs of each state."""
    page = GUIDE.read_text("utf-8")
    said = captioned(page, "sql")
    cluster.tell(*statements(said.pop("once, as a superuser")))
    url = cluster.url.replace("tester", "sinch_jobs").replace("/postgres", "/jobs")
    watcher = url.replace("sinch_jobs", "watcher")
    await JobStore(url).create_schema()
    asked(url, said.pop("as sinch_jobs"))
    sandbox.fail_next(404, message_id="ID-1-2")
    sandbox.fail_next(404, message_id="ID-2-1")
    async with JobStore(url) as store:
        ids = [await store.submit(updates(1), project_id=PROJECT)]
        limit = {"max_failures": 0, "concurrency": 1}
        ids.append(await store.submit(updates(2), project_id=PROJECT, **limit))
        ids.append(await store.submit(updates(3), project_id="nobody-has-its-key"))
        async with working(url, sandbox):
            for job in ids[:2]:
                await until_ended(store, job)
            await queries_show(said, url, watcher, store, sandbox)
        # The others of the page, on what there is now.
        assert asked(url, said.pop("why records of job 1 failed")) == [
            "404|NotFoundError|NOT_FOUND|1"
        ]
        sizes = asked(url, said.pop("how large each job is"))
        assert [line.split("|")[:2] for line in sizes] == [[str(n), "3"] for n in (1, 2, 3, 4)]
        assert all(re.fullmatch(r"\d+ kB", line.split("|")[2]) for line in sizes)
        assert said == {}
        await a_backup_goes_on_elsewhere(page, cluster, url, sandbox, tmp_path)
        asked(url, "UPDATE sinch_conv.jobs SET ended_at = now() - interval '31 days' WHERE id = 1")
        (clean_up,) = [block for block in python_blocks(page) if "clean_up" in block]
        await python(clean_up, url, tmp_path)
        assert [status.id for status in await store.list()] == [4, 3, 2]


async def queries_show(
    said: dict[str, str], url: str, watcher: str, store: JobStore, sandbox: Sandbox
) -> None:
    """The queries that a role for monitoring may ask, before, while and after a job runs."""
    waits = asked(watcher, said["what is not finished, and the time left"])
    assert waits == ["3|queued|nobody-has-its-key|3|0|0||"]
    alarm = said.pop("jobs that nobody does: no worker runs, or none has the project's credentials")
    assert asked(watcher, alarm) == []
    past = "UPDATE sinch_conv.jobs SET submitted_at = now() - interval '6 minutes'"
    asked(url, f"{past} WHERE id = 3")
    assert asked(watcher, alarm) == ["3|nobody-has-its-key|queued|"]
    failed = asked(watcher, said.pop("jobs that were given up, and jobs that wait for the API"))
    assert failed == [
        f"2|{PROJECT}|failed|more than 0 of the updates failed, so the rest was not tried"
    ]
    sandbox.hold()
    job = await store.submit(updates(4), project_id=PROJECT)
    await until_state(store, job, "running")
    unfinished = asked(watcher, said.pop("what is not finished, and the time left"))
    assert [line.split("|")[:2] for line in unfinished] == [["3", "queued"], ["4", "running"]]
    (busy,) = asked(watcher, said.pop("the workers that are busy"))
    assert busy.split("|")[1:] == ["1", "0"]
    sandbox.release()
    await until_ended(store, job)
    for hidden in ("records", "outcomes", "procrastinate_jobs"):
        with pytest.raises(AssertionError, match="permission denied"):
            asked(watcher, f"SELECT * FROM sinch_conv.{hidden}")
    with pytest.raises(AssertionError, match="permission denied"):
        asked(watcher, "SELECT options FROM sinch_conv.jobs")


async def a_backup_goes_on_elsewhere(
    page: str, cluster: Postgres, url: str, sandbox: Sandbox, folder: Path
) -> None:
    """A job that had not ended when the dump was made is done in the restored database."""
    dump, restore = (step.command for step in steps(page) if step.command.startswith("pg_"))
    job = await JobStore(url).submit([("ID-5-1", "5")], project_id=PROJECT)
    cluster.tell("CREATE DATABASE restored OWNER sinch_jobs TEMPLATE template0")
    restored = url.replace("/jobs", "/restored")
    environment = environment_of(None, SINCH_CONV_DATABASE=url, RESTORED=restored)
    for command in (dump, restore):
        async with Running(["-c", command], environment, folder, ("bash",)) as shell:
            ended = await shell.ends()
        assert (ended.code, ended.err) == (0, "")
    async with JobStore(restored) as store, working(restored, sandbox):
        assert (await until_ended(store, job)).updated == 1
        # New jobs do not take the numbers of those that were restored.
        assert await store.submit([], project_id=PROJECT) == job + 1
    await JobStore(url).cancel(job)
    await JobStore(url).delete(job)


@pytest.mark.needs_program("systemd-analyze")
async def test_the_unit_for_systemd_has_no_mistake(tmp_path: Path) -> None:
    unit = captioned(GUIDE.read_text("utf-8"), "ini")["/etc/systemd/system/sinch-worker@.service"]
    program = programs(tmp_path / "bin", sinch_conv="#!/bin/sh\n") / "sinch-conv"
    assert "/opt/sinch-conv/bin/sinch-conv" in unit
    path = tmp_path / "sinch-worker@.service"
    path.write_text(unit.replace("/opt/sinch-conv/bin/sinch-conv", str(program)))
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (said.returncode, said.stderr) == (0, "")


async def test_the_references_programs_run(url: str, sandbox: Sandbox, tmp_path: Path) -> None:
    submits, works = python_blocks(REFERENCE.read_text("utf-8"))
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=url)
    assert await python(submits, url, tmp_path) == "queued 3\n"
    async with Running(["-c", works], environment, tmp_path, (sys.executable,)) as worker:
        await until_ended(JobStore(url), 1)
        worker.send(signal.SIGTERM)
        ended = await worker.ends()
    assert (ended.code, ended.out) == (0, "{1: 'done'} {}\n")


async def python(source: str, url: str, folder: Path) -> str:
    """What a program of a page prints."""
    environment = environment_of(None, SINCH_CONV_DATABASE=url, SINCH_PROJECT_ID=PROJECT)
    async with Running(["-c", source], environment, folder, (sys.executable,)) as program:
        ended = await program.ends()
    assert (ended.code, ended.err) == (0, "")
    return ended.out


def updates(job: int) -> list[tuple[str, str]]:
    return [(f"ID-{job}-{number}", f"{job}") for number in (1, 2, 3)]


def captioned(page: str, language: str) -> dict[str, str]:
    """The page's blocks in this language, by their captions."""
    block = rf"^\.\. code-block:: {language}\n   :caption: (.*)\n\n((?:   .*\n|\n)+)"
    found = re.findall(block, page, re.MULTILINE)
    assert len(found) == page.count(f".. code-block:: {language}\n")
    return {caption: textwrap.dedent(text).strip() for caption, text in found}


def python_blocks(page: str) -> list[str]:
    found = re.findall(r"^\.\. code-block:: python\n\n((?:   .*\n|\n)+)", page, re.MULTILINE)
    return [textwrap.dedent(text).strip() for text in found]


def statements(text: str) -> list[str]:
    return [part for part in text.split(";\n") if part.strip()]


def asked(url: str, statement: str) -> list[str]:
    """What psql prints, a line for each row."""
    said = subprocess.run(
        ["psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statement],
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    return said.stdout.splitlines()
