"""The command ``sinch-conv`` and its subcommands."""

from __future__ import annotations

import contextlib

import click

from .._wire.requests import VERSION
from .bulk import bulk
from .demo import demo
from .jobs import jobs
from .output import INTERRUPTED, PrintingGroup, say
from .read import get, list_
from .sandbox import sandbox
from .update import update

__all__ = ["main", "run"]


@click.group(cls=PrintingGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, package_name="sinch-conv-async")
def main() -> None:
    """Read messages and change their metadata in the Sinch Conversation API. Unofficial.

    Credentials are read from SINCH_PROJECT_ID, SINCH_KEY_ID, SINCH_KEY_SECRET and
    SINCH_CONVERSATION_REGION, or from a file of such lines (--credentials).
    """


for command in (update, get, list_, bulk, jobs, sandbox, demo):
    main.add_command(command)


def run(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        code = main.main(arguments, prog_name="sinch-conv", standalone_mode=False)
    except click.exceptions.Abort:
        say("Interrupted.")
        return INTERRUPTED
    except click.ClickException as error:
        with contextlib.suppress(OSError, ValueError):
            error.show()
        return error.exit_code
    return code if isinstance(code, int) else 0
