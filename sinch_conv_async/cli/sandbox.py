"""``sinch-conv sandbox``: a stand-in for the API on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import ssl
import time
from typing import TYPE_CHECKING

import attrs
import click

from .._job.signals import not_ignored
from .access import Finite
from .output import USAGE, Ended, PrintingCommand, put, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sandbox import Sandbox, SandboxRequest, SandboxTokenRequest

__all__ = ["sandbox"]


@attrs.frozen
class Failing:
    """``--fail 503:100``: every hundredth request. ``--fail 429:1%``: 1 % of them, at random."""

    status: int
    number: int = 0
    share: float = 0.0


def _failing(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> tuple[Failing, ...]:
    found = []
    for value in values:
        status, _, often = value.partition(":")
        try:
            if often.endswith("%"):
                each = Failing(int(status), share=float(often[:-1]) / 100)
            else:
                each = Failing(int(status), number=int(often))
        except ValueError:
            each = Failing(0)
        if not (400 <= each.status <= 599 and (each.number > 0 or 0 < each.share <= 1)):
            raise click.BadParameter("STATUS:N or STATUS:P%, such as 503:100 or 429:1%")
        found.append(each)
    return tuple(found)


_FILE = click.Path(exists=True, dir_okay=False)


@click.command(cls=PrintingCommand)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="The address to listen on. The client uses plain http only to the loopback.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    metavar="PORT",
    help="0 takes a free one.",
)
@click.option(
    "--certificate", type=_FILE, metavar="FILE", help="Speak https with this certificate (PEM)."
)
@click.option(
    "--private-key",
    type=_FILE,
    metavar="FILE",
    help="Its private key, if it is not in the certificate's file.",
)
@click.option(
    "--seed",
    "seeds",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="Messages that it knows from the start: JSON Lines (.jsonl), JSON (.json) or CSV.",
)
@click.option("--strict-ids", is_flag=True, help="Answer 404 to ids that it does not know.")
@click.option(
    "--rate-limit",
    type=click.IntRange(0),
    default=800,
    show_default=True,
    metavar="N",
    help="Requests in a second before it answers 429; 0: no limit.",
)
@click.option(
    "--rate-burst",
    type=click.IntRange(1),
    metavar="N",
    help="Make the limit a token bucket of N requests, instead of a window of a second.",
)
@click.option(
    "--latency", type=Finite(0), default=0.0, metavar="SECONDS", help="Added before each answer."
)
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
    callback=_failing,
    metavar="STATUS:N|P%",
    help="Answer every Nth request, or P percent of them at random, with this status; "
    "may be given more than once.",
)
@click.option(
    "--drop", type=click.IntRange(1), metavar="N", help="Drop the connection of every Nth request."
)
@click.option(
    "--expire-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Let all tokens expire at every Nth request.",
)
@click.option(
    "--random-seed",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Seed of the random choice of --fail STATUS:P%.",
)
@click.option(
    "--keep-requests",
    type=click.IntRange(0),
    default=10_000,
    show_default=True,
    metavar="N",
    help="How many of the latest requests it remembers for /_sandbox/requests.",
)
@click.option("--log", is_flag=True, help="Write a line on standard error for each request.")
@click.option(
    "--no-gc", is_flag=True, help="Switch Python's garbage collector off, for measurements."
)
def sandbox(
    *,
    host: str,
    port: int,
    certificate: str | None,
    private_key: str | None,
    seeds: tuple[str, ...],
    strict_ids: bool,
    rate_limit: int,
    rate_burst: int | None,
    latency: float,
    token_lifetime: float,
    fails: tuple[Failing, ...],
    drop: int | None,
    expire_tokens: int | None,
    random_seed: int,
    keep_requests: int,
    log: bool,
    no_gc: bool,
) -> int:
    """A stand-in for the API, for trials and for tests in any language.

    It knows every message id, unless --strict-ids is given. Other programs can read the requests,
    add messages and script faults under /_sandbox/ on the same port. Prints its environment
    variables, one NAME=value a line, and runs until Ctrl-C.
    """
    # Imported here, because the other commands do not need its web server, which is slow to load.
    from ..sandbox import Sandbox

    if rate_burst is not None and not rate_limit:
        raise Ended("--rate-burst needs a --rate-limit", USAGE)
    box = Sandbox(
        host=host,
        port=port,
        ssl=_server_context(certificate, private_key),
        rate_limit=rate_limit or None,
        rate_burst=rate_burst,
        latency=latency,
        token_lifetime=token_lifetime,
        auto_create=not strict_ids,
        keep_requests=keep_requests,
        on_request=_log if log else None,
    )
    _seed(box, seeds)
    for each in fails:
        _fail(box, each, random_seed)
    if drop is not None:
        box.every(drop, box.drop_next)
    if expire_tokens is not None:
        box.every(expire_tokens, box.expire_tokens)
    if no_gc:
        gc.disable()
    try:
        asyncio.run(_serve(box))
    except OSError as error:
        raise Ended(f"{host} port {port}: {error.strerror}", USAGE) from None
    return 0


def _server_context(certificate: str | None, private_key: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        if private_key is not None:
            raise Ended("--private-key needs a --certificate", USAGE)
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as error:
        raise Ended(
            f"{certificate}: {error.strerror or 'not a certificate with its key'}", USAGE
        ) from None
    return context


def _seed(box: Sandbox, files: tuple[str, ...]) -> None:
    for file in files:
        try:
            box.load_messages(file)
        except (OSError, ValueError, KeyError) as error:
            raise Ended(f"{file}: {error.args[-1]}", USAGE) from None


def _fail(box: Sandbox, each: Failing, random_seed: int) -> None:
    fault: Callable[[], None] = functools.partial(box.fail_next, each.status)
    if each.share:
        box.at_random(each.share, fault, seed=random_seed)
    else:
        box.every(each.number, fault)


def _log(request: SandboxRequest | SandboxTokenRequest) -> None:
    """One line for a finished request, without query and body, which may be private."""
    method, path = getattr(request, "method", "POST"), getattr(request, "path", "/oauth2/token")
    shown = "".join(each if each.isprintable() else "?" for each in path)
    status = "no answer" if request.status is None else request.status
    say(f"{time.strftime('%H:%M:%S')} {method} {shown} {status}")


async def _serve(box: Sandbox) -> None:
    over = asyncio.Event()
    with contextlib.suppress(NotImplementedError):  # on Windows, where Ctrl-C ends it nevertheless
        for number in not_ignored():
            asyncio.get_running_loop().add_signal_handler(number, over.set)
    async with box:
        for name, value in box.environment().items():
            put(f"{name}={value}")
        await over.wait()
