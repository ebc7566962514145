"""The sandbox for other processes: the command and its options, curl as any other language,
pytest's fixtures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import shlex
import signal
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trustme
import yaml

from sinch_conv_async import (
    ConversationClient,
    NotFoundError,
    RateLimitedError,
    RetryPolicy,
    SessionManager,
)
from sinch_conv_async.sandbox import Sandbox
from tests.commands import Running, environment_of, sinch_conv

if TYPE_CHECKING:
    from collections.abc import Mapping

LIST = "v1/projects/sandbox-project/messages"


@attrs.frozen
class Served:
    """A sandbox command that runs, and where it is."""

    command: Running
    environment: Mapping[str, str]

    @property
    def origin(self) -> str:
        return self.environment["SINCH_CONVERSATION_ORIGIN"]

    def options(self) -> dict[str, Any]:
        return {
            name.removeprefix("SINCH_").lower(): value for name, value in self.environment.items()
        }

    async def curl(self, path: str, *arguments: str) -> Any:
        process = await asyncio.create_subprocess_exec(
            "curl", "-sS", "-m", "30", *arguments, f"{self.origin}/{path}", stdout=subprocess.PIPE
        )
        out, _ = await process.communicate()
        assert process.returncode == 0
        return json.loads(out)

    async def post(self, path: str, document: object) -> Any:
        return await self.curl(
            path, "-H", "Content-Type: application/json", "-d", json.dumps(document)
        )

    async def ends(self) -> str:
        self.command.send(signal.SIGTERM)
        ended = await self.command.ends()
        assert (ended.code, ended.out) == (0, "")
        return ended.err


async def served(command: Running) -> Served:
    assert command.process.stdout is not None
    lines = [(await command.process.stdout.readline()).decode().strip() for _ in range(5)]
    return Served(command, dict(line.split("=", 1) for line in lines))


def running(tmp_path: Path, *options: str | Path) -> Running:
    return Running(["sandbox", *options], environment_of(None), tmp_path)


@pytest.mark.needs_program("curl")
async def test_any_language_can_ask_and_tell_it(tmp_path):
    async with running(tmp_path, "--strict-ids") as command:
        sandbox = await served(command)
        user = ("-u", "sandbox-key-id:sandbox-key-secret")
        update = (
            *user,
            "-X",
            "PATCH",
            "-H",
            "Content-Type: application/json",
            "-d",
            '{"metadata": "new"}',
        )
        assert await sandbox.post("_sandbox/messages", {"id": "a", "metadata": "old"}) == {
            "added": 1
        }
        assert await sandbox.post("_sandbox/faults", {"fault": "fail_next", "status": 503}) == {
            "pending": 1
        }
        assert (await sandbox.curl(f"{LIST}/a", *update))["error"]["code"] == 503
        assert (await sandbox.curl(f"{LIST}/a", *update))["metadata"] == "new"
        assert (await sandbox.curl(f"{LIST}/b", *update))["error"]["code"] == 404
        requests = (await sandbox.curl("_sandbox/requests?after=1"))["requests"]
        assert [(each["message_id"], each["status"]) for each in requests] == [
            ("a", 200),
            ("b", 404),
        ]
        assert (await sandbox.curl("_sandbox/messages/a"))["updates"] == 1
        assert await sandbox.curl("_sandbox/messages", "-X", "DELETE") == {}
        assert await sandbox.ends() == ""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "seed.jsonl",
            '{"id": "a", "metadata": "one"}\n\n{"message_id": "b", "metadata": "two"}\n',
        ),
        ("seed.json", '[{"id": "a", "metadata": "one"}, {"id": "b", "metadata": "two"}]'),
        ("seed.csv", "message_id,metadata\na,one\nb,two\n"),
    ],
)
async def test_it_is_seeded_from_a_file_and_knows_no_other_id(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    async with running(tmp_path, "--seed", name, "--strict-ids", "--log") as command:
        sandbox = await served(command)
        async with ConversationClient(**sandbox.options()) as client:
            await client.update_message_metadata("b", "secret words")
            with pytest.raises(NotFoundError):
                await client.update_message_metadata("c", "x")
        said = await sandbox.ends()
    first, second, third = said.splitlines()
    assert first.endswith(" POST /oauth2/token 200")
    assert second.endswith(f" PATCH /{LIST}/b 200")
    assert third.endswith(f" PATCH /{LIST}/c 404")
    assert "secret" not in said


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("seed.jsonl", '{"id": "a"}\n{"id": 1}\n', "record 2: id must be text"),
        ("seed.jsonl", "{", "record 1: "),
        ("seed.json", "7", "a .json file must hold a list of messages"),
        ("seed.csv", "message_id,metdata\na,x\n", "record 1: a message has no attribute 'metdata'"),
        ("seed.csv", "message_id\na,x\n", "record 1: a message has no attribute None"),
        ("seed.jsonl", '{"id": "a", "project_id": "p"}', "there is no project 'p'"),
    ],
)
async def test_a_seed_that_is_not_valid_is_refused_with_the_record(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    ended = await sinch_conv("sandbox", "--seed", name, folder=tmp_path)
    assert ended.code == 2
    assert said in ended.err


async def test_it_fails_at_random_the_same_for_a_seed(tmp_path):
    async def statuses() -> list[int]:
        async with running(
            tmp_path, "--fail", "429:30%", "--random-seed", "5", "--no-gc"
        ) as command:
            sandbox = await served(command)
            found = []
            never = RetryPolicy(max_retries=0)
            async with ConversationClient(
                **sandbox.options(), rate_limit=None, retry=never
            ) as client:
                for number in range(60):
                    try:
                        await client.update_message_metadata(f"m{number}", "x")
                        found.append(200)
                    except RateLimitedError:
                        found.append(429)
            await sandbox.ends()
            return found

    once, again = await statuses(), await statuses()
    assert once == again
    assert 5 < once.count(429) < 35


async def test_it_speaks_https_with_the_certificate_of_a_private_ca(tmp_path):
    ca = trustme.CA()
    certificate = ca.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    with (tmp_path / "cert.pem").open("wb") as file:
        file.writelines(pem.bytes() for pem in certificate.cert_chain_pems)
    options = ("--certificate", "cert.pem", "--private-key", "key.pem", "--rate-burst", "5")
    async with running(tmp_path, *options) as command:
        sandbox = await served(command)
        assert sandbox.origin.startswith("https://127.0.0.1:")
        context = ssl.create_default_context()
        ca.configure_trust(context)
        # As in a container: OpenSSL is told of the CA by the environment.
        ca.cert_pem.write_to_path(tmp_path / "ca.pem")
        env = {**sandbox.environment, "SSL_CERT_FILE": "ca.pem"}
        ended = await sinch_conv("update", "m", "new", folder=tmp_path, env=env)
        assert ended.code == 0, ended.err
        async with (
            SessionManager(ssl=context) as manager,
            ConversationClient(**sandbox.options(), session_manager=manager) as client,
        ):
            assert (await client.update_message_metadata("m", "x")).metadata == "x"
        await sandbox.ends()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--private-key", "seed.txt"), "--private-key needs a --certificate"),
        (("--certificate", "seed.txt"), "seed.txt: "),
        (("--rate-burst", "5", "--rate-limit", "0"), "--rate-burst needs a --rate-limit"),
        (("--host", "256.0.0.1"), "256.0.0.1 port 0: "),
    ],
)
async def test_options_that_do_not_fit_are_refused(tmp_path, options, said):
    (tmp_path / "seed.txt").write_text("no certificate")
    ended = await sinch_conv("sandbox", *options, folder=tmp_path)
    assert ended.code == 2
    assert said in ended.err


def run_pytest(folder: Path, tests: str, *, plugins: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(plugins)
    (folder / "test_theirs.py").write_text(textwrap.dedent(tests))
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:asyncio",
        str(folder),
    ]
    environment = environment_of(None)
    return subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_fixtures_serve_synchronous_tests_with_parametrised_faults(tmp_path):
    done = run_pytest(
        tmp_path,
        """
        import asyncio, os, pytest
        from sinch_conv_async import ConversationClient, NotFoundError, RetryPolicy, ServerError

        def update():
            async def call():
                retry = RetryPolicy(base_delay=0, max_retries=1)
                async with ConversationClient.from_env(retry=retry) as client:
                    await client.update_message_metadata("m", "new")
            asyncio.run(call())

        def test_update(sinch_sandbox, sinch_environment):
            sinch_sandbox.add_message("m")
            update()
            assert sinch_sandbox.messages["m"].metadata == "new"
            assert sinch_environment["SINCH_PROJECT_ID"] == os.environ["SINCH_PROJECT_ID"]

        @pytest.mark.usefixtures("sinch_environment")
        @pytest.mark.parametrize(
            ("fault", "error"),
            [
                (lambda sandbox: sandbox.fail_next(503, times=2), ServerError),
                (lambda sandbox: None, NotFoundError),
            ],
        )
        def test_faults(sinch_sandbox, fault, error):
            fault(sinch_sandbox)
            with pytest.raises(error):
                update()

        @pytest.mark.usefixtures("sinch_environment")
        @pytest.mark.parametrize("sinch_sandbox", [{"auto_create": True}], indirect=True)
        def test_options(sinch_sandbox):
            update()
            assert "m" in sinch_sandbox.messages

        def test_the_environment_is_as_before():
            assert not [name for name in os.environ if name.startswith("SINCH_")]
        """,
        plugins='pytest_plugins = ["sinch_conv_async.sandbox.pytest"]\n',
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_the_fixtures_are_not_there_unless_they_are_named(tmp_path):
    done = run_pytest(tmp_path, "def test_it(sinch_sandbox): pass", plugins="")
    assert done.returncode == 1
    assert "fixture 'sinch_sandbox' not found" in done.stdout
    assert os.environ.get("PYTEST_PLUGINS") is None


COMPOSE = Path(__file__).parent.parent.parent / "examples/compose"


@pytest.mark.parametrize("name", ["compose.yaml", "compose-https.yaml"])
def test_the_compose_files_lead_the_application_to_the_sandbox(name, tmp_path, monkeypatch):
    """No docker here: the file is read, and the sandbox's command is parsed by the
    command itself.
    """
    services = yaml.safe_load((COMPOSE / name).read_text("utf-8"))["services"]
    program, command, *arguments = shlex.split(services["sandbox"]["command"])
    assert (program, command) == ("sinch-conv", "sandbox")
    options = dict(itertools.pairwise(arguments))
    host = (
        "127.0.0.1"
        if services["application"].get("network_mode") == "service:sandbox"
        else "sandbox"
    )
    scheme = "https" if "--certificate" in options else "http"
    assert (host, scheme) in (("127.0.0.1", "http"), ("sandbox", "https"))
    environment = services["application"]["environment"]
    origin = f"{scheme}://{host}:{options['--port']}"
    assert environment["SINCH_CONVERSATION_ORIGIN"] == environment["SINCH_AUTH_ORIGIN"] == origin
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)  # it is in the container
    assert ConversationClient.from_env()
    sandbox = Sandbox(port=int(options["--port"]))
    credentials = sandbox.environment()
    for key in ("SINCH_PROJECT_ID", "SINCH_KEY_ID", "SINCH_KEY_SECRET"):
        assert environment[key] == credentials[key]


@pytest.mark.needs_program("openssl")
async def test_the_certificates_script_makes_what_the_compose_file_mounts(tmp_path):
    subprocess.run([COMPOSE / "certificates.sh"], cwd=tmp_path, check=True, capture_output=True)
    folder = tmp_path / "certificates"
    options = ("--certificate", folder / "sandbox.pem", "--private-key", folder / "sandbox.key")
    async with running(
        tmp_path, *options, "--seed", COMPOSE / "messages.csv", "--strict-ids"
    ) as command:
        sandbox = await served(command)
        env = {
            name: value.replace("127.0.0.1", "localhost")
            for name, value in sandbox.environment.items()
        }
        env["SSL_CERT_FILE"] = str(folder / "ca.pem")
        ended = await sinch_conv(
            "update", "01FC66621XXXXX119Z8PMV1QPA", "new", folder=tmp_path, env=env
        )
        assert ended.code == 0, ended.err
        await sandbox.ends()
