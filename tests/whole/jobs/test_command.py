"""``sinch-conv jobs``: what each command prints, and its exit code."""

from __future__ import annotations

import csv as csv_module
import io
import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from sinch_conv_async.cli import jobs as command
from sinch_conv_async.cli.output import Ended
from sinch_conv_async.jobs import JobStore
from tests.commands import Running, csv, environment_of, sinch_conv
from tests.whole.jobs.database import PROJECT, until_ended, until_state, working

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from tests.commands import Ended as CommandEnded

pytestmark = pytest.mark.needs_program("initdb")


@pytest.fixture
def jobs(url: str, tmp_path: Path, sandbox) -> Callable[..., Coroutine[Any, Any, CommandEnded]]:
    """Runs ``sinch-conv jobs`` with these arguments on the test's database."""

    async def run(*arguments: object, given: bytes | None = None) -> CommandEnded:
        return await sinch_conv(
            "jobs",
            *map(str, arguments),
            folder=tmp_path,
            sandbox=sandbox,
            given=given,
            env={"SINCH_CONV_DATABASE": url},
        )

    return run


async def test_from_the_tables_to_the_deletion_as_a_person_does_it(
    empty_url, sandbox, tmp_path, cluster
):
    """Each command once, and what it prints."""
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=empty_url)

    async def jobs(*arguments: str) -> CommandEnded:
        async with Running(["jobs", *arguments], environment, tmp_path) as running:
            return await running.ends()

    none = await jobs("list")
    assert none.code == 3
    assert "has no tables for jobs" in none.err
    assert (await jobs("schema")).code == 0
    sandbox.fail_next(404, message_id="ID3")
    submitted = await jobs("submit", str(csv(tmp_path, 20)))
    assert (submitted.code, submitted.out, submitted.err) == (0, "1\n", "")
    async with Running(["jobs", "worker"], environment, tmp_path) as worker:
        followed = await jobs("status", "1", "--follow", "--output", "json")
        assert followed.code == 1  # one has failed
        worker.send(signal.SIGTERM)
        ended = await worker.ends()
    assert ended.code == 0
    assert "Job 1 is done." in ended.err
    assert "Gave back nothing." in ended.err
    status = followed.json
    assert {name: status[name] for name in ("state", "records", "updated", "failed")} == {
        "state": "done",
        "records": 20,
        "updated": 19,
        "failed": 1,
    }
    assert (status["superseded"], status["remaining"]) == (0, 0)
    assert status["rate"] > 0
    assert status["project_id"] == PROJECT
    text = await jobs("status", "1")
    assert (text.code, text.out.split()[:3]) == (0, ["job", "1", "done"])
    failed = await jobs("failures", "1")
    rows = list(csv_module.DictReader(io.StringIO(failed.out)))
    assert [(row["message_id"], row["_reason"]) for row in rows] == [
        ("ID3", "404 NotFoundError NOT_FOUND")
    ]
    # What it prints is an input.
    (tmp_path / "again.csv").write_text(failed.out)
    assert (await jobs("submit", "again.csv")).out == "2\n"
    outcomes = await jobs("outcomes", "1", "--output", "jsonl")
    found = [json.loads(line) for line in outcomes.out.splitlines()]
    assert [row["outcome"] for row in found].count("updated") == 19
    assert found[2]["http_status"] == 404
    listed = await jobs("list")
    assert [line.split()[:2] for line in listed.out.splitlines()] == [
        ["2", "queued"],
        ["1", "done"],
    ]
    assert len((await jobs("list", "--output", "json")).json) == 2
    cancelled = await jobs("cancel", "2", "--output", "json")
    assert cancelled.json["state"] == "cancelled"
    assert (await jobs("retry", "1", "--output", "json")).json["state"] == "queued"
    refused = await jobs("delete", "1")
    assert (refused.code, refused.err) == (2, "Error: job 1 is queued; cancel it first\n")
    assert (await jobs("delete", "2")).err == "Job 2 is deleted.\n"
    unknown = await jobs("status", "2")
    assert (unknown.code, unknown.err) == (2, "Error: there is no job 2\n")


async def test_submit_takes_the_options_of_bulk(jobs, url, sandbox):
    given = b"key|text|where\nA|{}|DISPATCH_SOURCE\na b|x|\n"
    options = ["--delimiter", "|", "--id-column", "key", "--metadata-column", "text"]
    options += ["--source-column", "where", "--merge", "--rate", "700", "--concurrency", "7"]
    options += ["--max-outage", "60", "--region", "us", "--set", '{"a": 1}']
    refused = await jobs("submit", "-", *options, given=given)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.splitlines()[0].startswith("line 3: message_id")
    assert refused.err.splitlines()[1] == (
        "Error: the input has 1 bad line, so no job was made; --on-bad-line skip leaves it out"
    )
    made = await jobs(
        "submit", "-", *options, "--on-bad-line", "skip", "--max-failures", "3%", given=given
    )
    assert made.code == 0
    sandbox.add_message("A", metadata='{"b":2}')
    store = JobStore(url)
    async with working(url, sandbox):
        status = await until_ended(store, int(made.out))
    assert (status.updated, status.invalid, status.region, status.input) == (1, 1, "us", "-")
    assert sandbox.messages["A"].metadata == '{"b":2,"a":1}'
    assert "messages_source=DISPATCH_SOURCE" in sandbox.requests[-1].query


async def test_the_project_of_a_job_is_that_of_the_credentials_file(jobs, url, tmp_path):
    path = tmp_path / "credentials"
    path.write_text("SINCH_PROJECT_ID=of-the-file\n")
    path.chmod(0o600)
    made = await jobs("submit", csv(tmp_path), "--credentials", path, "--max-failures", "5")
    assert (await JobStore(url).status(int(made.out))).project_id == "of-the-file"


async def test_what_is_wrong_has_its_exit_code(jobs, tmp_path):
    assert (await jobs("submit", "not-there.csv")).code == 2
    wrong = await jobs("submit", csv(tmp_path), "--project-id", "a b")
    assert (wrong.code, wrong.out) == (2, "")
    away = await jobs("list", "--database", "postgresql://user:secret-word@127.0.0.1:1/none")
    assert away.code == 3
    assert "secret-word" not in away.err
    url = await jobs("list", "--database", "secret-word=")
    assert url.code == 2
    assert "secret-word" not in url.err
    credentials = await jobs("worker", "--auth-origin", "http://example.com")
    assert credentials.code == 2
    nothing = tmp_path / "nothing"
    nothing.write_text("")
    nothing.chmod(0o600)
    also = await jobs("worker", "--also", nothing)
    assert (also.code, also.err) == (3, f"Error: {nothing} names no SINCH_PROJECT_ID\n")


async def test_a_worker_without_credentials_ends_with_3(url, tmp_path):
    ended = await sinch_conv("jobs", "worker", folder=tmp_path, env={"SINCH_CONV_DATABASE": url})
    assert ended.code == 3
    assert "SINCH_PROJECT_ID" in ended.err


async def test_a_worker_has_the_credentials_of_several_projects(jobs, url, sandbox, tmp_path):
    sandbox.add_project("other", key_id="key-of-other", key_secret="secret-of-other")
    also = tmp_path / "other.env"
    also.write_text(
        "".join(f"{name}={value}\n" for name, value in sandbox.environment("other").items())
    )
    also.chmod(0o600)
    ids = [
        (await jobs("submit", csv(tmp_path), "--project-id", name)).out.strip()
        for name in (PROJECT, "other")
    ]
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=url)
    store = JobStore(url)
    arguments = ["jobs", "worker", "--also", str(also), "--jobs", "2", "-v"]
    async with Running(arguments, environment, tmp_path) as worker:
        for job in ids:
            assert (await until_ended(store, int(job))).state == "done"
        worker.send(signal.SIGINT)
        assert (await worker.ends()).code == 0


async def test_a_worker_that_is_stopped_says_what_it_gave_back(jobs, url, sandbox, tmp_path):
    sandbox.hold()
    job = (await jobs("submit", csv(tmp_path, 30), "--concurrency", "4")).out.strip()
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=url)
    async with Running(["jobs", "worker"], environment, tmp_path) as worker:
        await sandbox.wait_for_requests(4)
        worker.send(signal.SIGTERM)
        await worker.says("Finishing the updates under way; a second signal ends the job now.")
        sandbox.release()
        ended = await worker.ends()
    assert ended.code == 0
    assert f"Gave back job {job}: 26 records remain." in ended.err


async def test_the_second_signal_ends_a_worker_at_once(jobs, url, sandbox, tmp_path):
    sandbox.hold()
    job = (await jobs("submit", csv(tmp_path, 30), "--concurrency", "4")).out.strip()
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=url)
    async with Running(["jobs", "worker"], environment, tmp_path) as worker:
        await sandbox.wait_for_requests(4)
        cancelled = await jobs("cancel", job)
        assert cancelled.code == 0
        assert "The worker finishes what is under way" in cancelled.err
        worker.send(signal.SIGTERM)
        await worker.says("Finishing the updates under way")
        worker.send(signal.SIGTERM)
        ended = await worker.ends()
    assert (ended.code, ended.err.splitlines()[-1]) == (
        130,
        "Ended at once. What was under way may be sent again.",
    )
    status = await JobStore(url).status(int(job))
    assert (status.state, status.remaining) == ("cancelled", 30)
    sandbox.release()


async def test_following_a_job_can_be_left(jobs, url, sandbox, tmp_path):
    job = (await jobs("submit", csv(tmp_path))).out.strip()
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=url)
    arguments = ["jobs", "status", job, "--follow"]
    async with Running(arguments, environment, tmp_path) as follower, working(url, sandbox):
        sandbox.hold()
        await until_state(JobStore(url), int(job), "running")
        await follower.says("Following job")
        follower.send(signal.SIGINT)
        ended = await follower.ends()
        sandbox.release()
    assert ended.code == 130
    assert "remaining" in ended.out


async def test_nobody_has_to_read_all_rows(jobs, url, sandbox, tmp_path):
    sandbox.fail_next(404, message_id="ID15")
    made = await jobs("submit", csv(tmp_path), "--max-failures", "0", "--concurrency", "1")
    job = made.out.strip()
    async with working(url, sandbox):
        await until_ended(JobStore(url), int(job))
    status = await jobs("status", job, "--follow", "--quiet")
    assert (status.code, status.err) == (1, "")
    assert status.out.splitlines()[-1] == (
        "more than 0 of the updates failed, so the rest was not tried"
    )
    closed = f"{sys.executable} -m sinch_conv_async jobs outcomes {job} >&-"
    environment = environment_of(sandbox, SINCH_CONV_DATABASE=url)
    async with Running([], environment, tmp_path, ("bash", "-c", closed)) as running:
        ended = await running.ends()
    assert (ended.code, ended.err) == (0, "")
    command = f"{sys.executable} -m sinch_conv_async jobs outcomes {job} | head -n 2"
    async with Running([], environment, tmp_path, ("bash", "-c", command)) as running:
        ended = await running.ends()
    assert ended.out.splitlines()[0].startswith("record,line,message_id,outcome")
    assert len(ended.out.splitlines()) == 2
    gone = f"{sys.executable} -m sinch_conv_async jobs outcomes {job} --output jsonl | true"
    async with Running([], environment, tmp_path, ("bash", "-o", "pipefail", "-c", gone)) as left:
        ended = await left.ends()
    assert (ended.code, ended.err) == (0, "")


async def test_without_the_extra_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "procrastinate", None)
    for name in [name for name in sys.modules if name.startswith("sinch_conv_async.jobs")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("sinch_conv_async.jobs", raising=False)
    with pytest.raises(
        Ended, match=r"jobs need procrastinate: pip install 'sinch-conv-async\[jobs\]'"
    ):
        command._module()


async def test_a_module_of_ours_that_is_missing_is_no_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sinch_conv_async.jobs", None)
    monkeypatch.delattr("sinch_conv_async.jobs", raising=False)
    with pytest.raises(ModuleNotFoundError):
        command._module()
