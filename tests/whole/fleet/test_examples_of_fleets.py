"""examples/fleet: the compose file and the unit can be read by what they are for, and the web
process serves.
"""

from __future__ import annotations

import asyncio
import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
import yaml

from sinch_conv_async.sandbox import Sandbox
from tests.commands import environment_of, unmeasured
from tests.whole.faults.programs import free_port
from tests.whole.fleet.stores import Redis

EXAMPLES = Path(__file__).parent.parent.parent.parent / "examples" / "fleet"


def test_the_compose_file_leads_every_process_to_the_same_store():
    services = yaml.safe_load((EXAMPLES / "compose.yaml").read_text("utf-8"))["services"]
    fleets = {
        name: service["environment"].get("SINCH_CONV_FLEET") for name, service in services.items()
    }
    assert fleets["web"] == fleets["nightly"] == "redis://:${REDIS_PASSWORD}@redis:6379/0"
    assert services["web"]["deploy"]["replicas"] == 2
    assert all(set(service.get("depends_on", [])) <= set(services) for service in services.values())


def test_the_unit_is_one_that_systemd_reads(tmp_path):
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment]  # keys keep their case
    unit.read(EXAMPLES / "tagger@.service", "utf-8")
    assert unit["Service"]["EnvironmentFile"] == "/etc/sinch/tagger.env"
    verify = shutil.which("systemd-analyze")
    if verify is None:
        return  # what can be read without systemd has been read
    made = tmp_path / "tagger@.service"
    text = (EXAMPLES / "tagger@.service").read_text("utf-8")
    made.write_text(text.replace("/opt/tagger/venv/bin/python", sys.executable), "utf-8")
    done = subprocess.run(
        [verify, "verify", str(made)], capture_output=True, text=True, check=False
    )
    assert "tagger" not in done.stderr, done.stderr


@pytest.mark.needs_program("redis-server")
async def test_two_web_processes_share_one_token():
    with Redis() as store:
        async with Sandbox(auto_create=True) as sandbox, aiohttp.ClientSession() as http:
            ports = [free_port(), free_port()]
            environment = unmeasured(
                environment_of(sandbox, SINCH_CONV_FLEET=store.url, SINCH_CONVERSATION_REGION="us")
            )
            processes = [
                subprocess.Popen(
                    [sys.executable, str(EXAMPLES / "web.py")],
                    env={**environment, "PORT": str(port)},
                    stdout=subprocess.DEVNULL,
                )
                for port in ports
            ]
            try:
                for port in ports:
                    await tagged(http, port)
            finally:
                for process in processes:
                    process.terminate()
                for process in processes:
                    assert process.wait(15) in (0, -15, 143)
            assert len(sandbox.token_requests) == 1
            assert sandbox.updates_applied == 2


async def tagged(http: aiohttp.ClientSession, port: int) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                async with http.put(f"http://127.0.0.1:{port}/tags/m1", data="x") as response:
                    assert await response.json() == {"id": "m1"}
                    return
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
