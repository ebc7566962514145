"""The options of every command that calls the API: origin, credentials, proxy, fleet, log.

Secrets come from the environment or a file, never from an argument, which every process of the
machine can read.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import attrs
import click

from .._core.manager import SessionManager
from .._wire.arguments import checked_origin, regional_origin
from ..client import _ENVIRONMENT, ClientOptions, ConversationClient
from ..enums import Region
from ..errors import InvalidArgumentError
from ..fleet import Fleet
from .output import REFUSED, USAGE, Ended, say

__all__ = [
    "Access",
    "Finite",
    "access_of",
    "credentials_option",
    "fleet_at",
    "log_to",
    "read_credentials",
    "with_access",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])

_IN_CREDENTIALS: Final = {variable: option for option, variable in _ENVIRONMENT.items()}


class Finite(click.FloatRange):
    """A finite number: click takes ``nan`` and ``inf`` too."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or a usage error."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@attrs.frozen
class Access:
    """The values of these options."""

    file: Path | None
    credentials: dict[str, str] = attrs.field(repr=False)  # what the file says
    project_id: str | None
    region: str | None
    conversation_origin: str | None
    auth_origin: str | None
    auth: Literal["oauth2", "basic"]
    proxy: str | None = attrs.field(repr=False)
    fleet: str | None = attrs.field(repr=False)

    def manager(self, *, max_connections: int = 256) -> SessionManager:
        """A session manager for these options. A wrong option ends the command with exit code 2."""
        fleet = None if self.fleet is None else fleet_at(self.fleet)
        try:
            return SessionManager(max_connections=max_connections, proxy=self.proxy, fleet=fleet)
        except InvalidArgumentError as error:
            refusal = str(error)
        raise Ended(f"--proxy: {refusal}", USAGE)

    def client(self, manager: SessionManager, *, rate: float | None = None) -> ConversationClient:
        """A client for these options.

        A missing or wrong credential ends the command with exit code 3.
        """
        options: ClientOptions = {**self.client_options(), "session_manager": manager}
        if rate is not None:
            options["rate_limit"] = rate
        try:
            return ConversationClient.from_env(**options)
        except InvalidArgumentError as error:
            refusal = str(error)
        # A misspelt name in the file is ignored, and the user would not look for it there.
        looked = "" if self.file is None else f" (credentials were read from {self.file}, too)"
        raise Ended(refusal + looked, REFUSED)

    def client_options(self, further: Path | None = None) -> ClientOptions:
        """The client's keywords for these options, or for those of a ``further`` project."""
        options: ClientOptions = {"auth": self.auth}
        given = {
            "conversation_origin": self.conversation_origin,
            "auth_origin": self.auth_origin,
        }
        if further is None:
            options.update(self.credentials)  # type: ignore[typeddict-item]  # a client's keys
            given |= {"project_id": self.project_id, "conversation_region": self.region}
        else:
            found = read_credentials(further)
            if "project_id" not in found:
                raise Ended(f"{further} names no SINCH_PROJECT_ID", REFUSED)
            options.update(found)  # type: ignore[typeddict-item]  # a client's keys
        for name, value in given.items():
            if value is not None:
                options[name] = value  # type: ignore[literal-required]  # the four names above
        return options

    def known_project(self) -> str | None:
        """The project, if it is known."""
        return self._known("project_id", self.project_id)

    def known_origin(self) -> str | None:
        """The origin that updates are sent to, if it is known."""
        origin = self._known("conversation_origin", self.conversation_origin)
        region = self._known("conversation_region", self.region)
        try:
            if origin is not None:
                return checked_origin("conversation_origin", origin)
            return None if region is None else regional_origin(region)
        except InvalidArgumentError:
            return None

    def _known(self, option: str, given: str | None) -> str | None:
        return given or self.credentials.get(option) or os.environ.get(_ENVIRONMENT[option]) or None


def fleet_at(url: str) -> Fleet:
    """The fleet on the store at this URL. The URL's password is never shown."""
    scheme = url.partition("://")[0].lower()
    try:
        # Imported here, because each needs an extra that most commands do not need.
        if scheme in ("redis", "rediss", "unix"):
            from ..fleet.redis import RedisFleet

            return RedisFleet(url)
        if scheme in ("postgres", "postgresql"):
            from ..fleet.postgres import PostgresFleet

            return PostgresFleet(url)
    except ModuleNotFoundError as missing:
        extra = "redis" if scheme not in ("postgres", "postgresql") else "jobs"
        package = str(missing.name).partition(".")[0]
        raise Ended(
            f"--fleet needs {package}: pip install 'sinch-conv-async[{extra}]'", USAGE
        ) from None
    raise Ended(
        "--fleet: the URL must begin with redis://, rediss://, unix:// or postgresql://", USAGE
    )


def read_credentials(path: Path) -> dict[str, str]:
    """The client's options from lines of ``NAME=value``.

    ``export`` before the name and quotes around the value are allowed; other names are ignored.
    """
    try:
        text = path.read_text("utf-8-sig")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise Ended(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}", REFUSED) from None
    if mode & 0o044 and os.name == "posix":
        say(f"Warning: others can read {path} and the key in it; chmod 600 prevents that.")
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise Ended(f"{path}, line {number}: not NAME=value", REFUSED)
        value = value.strip()
        if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        if name.strip() in _IN_CREDENTIALS and value:
            found[_IN_CREDENTIALS[name.strip()]] = value
    return found


def _origin(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        return checked_origin("it", value)
    except InvalidArgumentError as error:
        raise click.BadParameter(str(error)) from None


credentials_option: Final = click.option(
    "--credentials",
    type=click.Path(readable=False, path_type=Path),
    metavar="FILE",
    help="File with lines such as SINCH_KEY_ID=...; it overrides the environment.",
)

_OPTIONS: Final = (
    credentials_option,
    click.option("--project-id", metavar="ID", help="Instead of SINCH_PROJECT_ID."),
    click.option(
        "--region",
        type=click.Choice([str(region) for region in Region], case_sensitive=False),
        help="Instead of SINCH_CONVERSATION_REGION.",
    ),
    click.option(
        "--conversation-origin",
        metavar="URL",
        callback=_origin,
        help="Instead of the region's own.",
    ),
    click.option(
        "--auth-origin", metavar="URL", callback=_origin, help="Instead of https://auth.sinch.com."
    ),
    click.option(
        "--auth",
        type=click.Choice(["oauth2", "basic"]),
        default="oauth2",
        show_default=True,
        help="How to authenticate. Basic is for trials, because the API limits it heavily.",
    ),
    click.option(
        "--proxy",
        metavar="URL",
        help="HTTP proxy for all requests. The environment's proxies are not used.",
    ),
    click.option(
        "--fleet",
        metavar="URL",
        envvar="SINCH_CONV_FLEET",
        help="Share limit and token with other processes: redis://... or postgresql://...",
    ),
    click.option(
        "-v",
        "--verbose",
        count=True,
        help="Log to standard error: what changes (-v), each attempt (-vv).",
    ),
)


def with_access(command: _Command) -> _Command:
    """Adds the options of every command that calls the API; :func:`access_of` reads them."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def access_of(options: dict[str, Any], *, tell: Callable[[str], None] = say) -> Access:
    """Take these options out of ``options``. ``tell`` gets the log, if it was requested.

    A file of credentials that cannot be read ends the command with exit code 3.
    """
    log_to(tell, options.pop("verbose"))
    path = options.pop("credentials")
    given = {} if path is None else read_credentials(path)
    return Access(path, given, *(options.pop(field.name) for field in attrs.fields(Access)[2:]))


class _Said(logging.Handler):
    """Log records as sentences on standard error."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__()
        self.tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self.tell(self.format(record))


_SILENT: Final = logging.NullHandler()
_LEVELS: Final = (None, logging.INFO, logging.DEBUG)


def log_to(tell: Callable[[str], None], verbose: int) -> None:
    """Show the package's log: nothing, from INFO on, or everything."""
    logger = logging.getLogger("sinch_conv_async")
    for handler in list(logger.handlers):
        if isinstance(handler, _Said):
            logger.removeHandler(handler)
    level = _LEVELS[min(verbose, len(_LEVELS) - 1)]
    if level is None:
        # These commands report errors in sentences of their own; logging's last resort would repeat
        # them.
        logger.addHandler(_SILENT)
        logger.setLevel(logging.NOTSET)
        return
    handler = _Said(tell)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(level)
