"""Where to and as whom: what the options, the file and the environment say together."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from sinch_conv_async.cli.access import Access, access_of, fleet_at, log_to, read_credentials
from sinch_conv_async.cli.output import USAGE, Ended

OPTIONS = {
    "verbose": 0,
    "credentials": None,
    "project_id": None,
    "region": None,
    "conversation_origin": None,
    "auth_origin": None,
    "auth": "oauth2",
    "proxy": None,
    "fleet": None,
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROJECT_ID", "CONVERSATION_REGION", "CONVERSATION_ORIGIN"):
        monkeypatch.delenv(f"SINCH_{name}", raising=False)


def access(credentials: dict[str, str] | None = None, **options: str) -> Access:
    return access_of({**OPTIONS, **options}) if credentials is None else Access(
        None, credentials, *({**OPTIONS, **options}[name] for name in list(OPTIONS)[2:])
    )  # fmt: skip


def test_the_origin_is_the_regions_unless_one_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    assert access().known_origin() is None
    assert access(region="eu").known_origin() == "https://eu.conversation.api.sinch.com"
    assert (
        access({"conversation_region": "br"}).known_origin()
        == "https://br.conversation.api.sinch.com"
    )
    monkeypatch.setenv("SINCH_CONVERSATION_REGION", "us")
    assert access().known_origin() == "https://us.conversation.api.sinch.com"
    monkeypatch.setenv("SINCH_CONVERSATION_ORIGIN", "https://mock.example/")
    assert access(region="eu").known_origin() == "https://mock.example"
    assert access(conversation_origin="http://[::1]:8080").known_origin() == "http://[::1]:8080"
    monkeypatch.setenv("SINCH_CONVERSATION_ORIGIN", "nonsense")
    assert access().known_origin() is None


def test_the_project_is_the_options_the_files_or_the_environments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert access().known_project() is None
    monkeypatch.setenv("SINCH_PROJECT_ID", "environment")
    assert access().known_project() == "environment"
    assert access({"project_id": "file"}).known_project() == "file"
    assert access({"project_id": "file"}, project_id="option").known_project() == "option"


def test_a_file_of_credentials_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_bytes("SINCH_PROJECT_ID=p\n".encode("utf-8-sig"))
    assert read_credentials(path) == {"project_id": "p"}


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("redis://u:secret@h/0", "redis", "redis"),
        ("postgresql://u:secret@h/d", "psycopg", "jobs"),
    ],
)
def test_a_fleet_without_its_package_names_the_extra(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    store = "redis" if module == "redis" else "postgres"
    monkeypatch.delitem(sys.modules, f"sinch_conv_async.fleet.{store}", raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Ended) as ended:
        fleet_at(url)
    assert ended.value.exit_code == USAGE
    assert ended.value.message == (
        f"--fleet needs {module}: pip install 'sinch-conv-async[{extra}]'"
    )


@pytest.mark.parametrize(
    ("verbose", "levels"), [(0, []), (1, ["INFO"]), (2, ["INFO", "DEBUG"]), (5, ["INFO", "DEBUG"])]
)
def test_the_log_is_told_as_it_was_asked_for(verbose: int, levels: list[str]) -> None:
    logger, said = logging.getLogger("sinch_conv_async"), []
    before = logger.level
    try:
        log_to(lambda text: pytest.fail(text), 2)
        log_to(said.append, verbose)
        logger.info("first")
        logger.debug("second")
    finally:
        log_to(said.append, 0)
        logger.setLevel(before)
    assert [text.split()[2] for text in said] == levels
