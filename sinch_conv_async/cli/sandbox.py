"""``sinch-conv sandbox``: a stand-in for the API on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING

import attrs
import click

from .._job.signals import not_ignored
from .access import Finite
from .output import USAGE, Ended, PrintingCommand, put

if TYPE_CHECKING:
    from ..sandbox import Sandbox

__all__ = ["sandbox"]


@attrs.frozen
class Every:
    """``--fail 503:100``: every hundredth request is answered 503."""

    number: int
    status: int


def _every(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[Every, ...]:
    found = []
    for value in values:
        status, _, number = value.partition(":")
        if not (status.isdigit() and number.isdigit() and 400 <= int(status) <= 599 and int(number) > 0):
            raise click.BadParameter("STATUS:N, such as 503:100")
        found.append(Every(int(number), int(status)))
    return tuple(found)


@click.command(cls=PrintingCommand)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    metavar="PORT",
    help="0 takes a free one.",
)
@click.option(
    "--rate-limit",
    type=click.IntRange(0),
    default=800,
    show_default=True,
    metavar="N",
    help="Requests in a second before it answers 429; 0: no limit.",
)
@click.option("--latency", type=Finite(0), default=0.0, metavar="SECONDS", help="Added before each answer.")
@click.option(
    "--token-lifetime",
    type=Finite(0, min_open=True),
    default=3600,
    show_default=True,
    metavar="SECONDS",
    help="How long an access token is good for.",
)
@click.option(
    "--fail",
    "fails",
    multiple=True,
    callback=_every,
    metavar="STATUS:N",
    help="Answer every Nth request with this status; may be given more than once.",
)
@click.option("--drop", type=click.IntRange(1), metavar="N", help="Drop the connection of every Nth request.")
@click.option(
    "--expire-tokens", type=click.IntRange(1), metavar="N", help="Let all tokens expire at every Nth request."
)
def sandbox(
    port: int,
    rate_limit: int,
    latency: float,
    token_lifetime: float,
    fails: tuple[Every, ...],
    drop: int | None,
    expire_tokens: int | None,
) -> int:
    """A stand-in for the API on this machine, for trying things out. It knows every message id.

    Prints the environment that leads to it, one NAME=value a line, and runs until Ctrl-C.
    """
    # Here: its web server is of no use to the other commands, and takes its time to load.
    from ..sandbox import Sandbox

    box = Sandbox(
        port=port,
        rate_limit=rate_limit or None,
        latency=latency,
        token_lifetime=token_lifetime,
        auto_create=True,
        keep_requests=0,
    )
    for fail in fails:
        box.every(fail.number, functools.partial(box.fail_next, fail.status))
    if drop is not None:
        box.every(drop, box.drop_next)
    if expire_tokens is not None:
        box.every(expire_tokens, box.expire_tokens)
    try:
        asyncio.run(_serve(box))
    except OSError as error:
        raise Ended(f"port {port}: {error.strerror}", USAGE) from None
    return 0


async def _serve(box: Sandbox) -> None:
    over = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C ends it all the same
        for number in not_ignored():
            asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with box:
        for name, value in environment(box).items():
            put(f"{name}={value}")
        await over.wait()


def environment(box: Sandbox) -> dict[str, str]:
    """What leads to a sandbox, as the client reads it."""
    options = box.client_options()
    return {
        "SINCH_PROJECT_ID": options["project_id"],
        "SINCH_KEY_ID": options["key_id"],
        "SINCH_KEY_SECRET": options["key_secret"],
        "SINCH_CONVERSATION_ORIGIN": options["conversation_origin"],
        "SINCH_AUTH_ORIGIN": options["auth_origin"],
    }
