"""Small protocols between the send loop, the operation that it sends, and its credentials.

:class:`Operation` has its implementations in ``_wire/operations.py``; :class:`Authorization` has
them in ``tokens.py``. The protocol ``Fleet`` (several processes share one limit) belongs to
``sinch_conv_async.fleet``, which is pure and lies under this group; the manager takes one as a
keyword. This file has only protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import ClassVar, Protocol, TypeVar

from .._wire.arguments import Credentials
from .._wire.failure import Failure
from .._wire.requests import Request
from .._wire.responses import Response
from ..errors import SinchError
from .lifetime import Lifetime
from .tokens import Token

__all__ = ["Authorization", "Operation"]

T_co = TypeVar("T_co", covariant=True)


class Operation(Protocol[T_co]):
    """One operation of the API: its request, and how to read the answer.

    It is immutable, and may be sent several times.
    """

    @property
    def request(self) -> Request:
        """The request, which is the same in every attempt."""
        ...

    safe: ClassVar[bool]
    """Whether a repeat changes nothing, even if an earlier attempt has reached the server."""

    def read(
        self, response: Response, *, scrub: Callable[[str], str], reused: bool
    ) -> T_co | Failure:
        """The result, or a Failure that says why the response has no result.

        ``scrub`` cuts credentials out of a server's text. ``reused``: the connection has carried a
        response before, so this one may belong to an earlier request.
        """
        ...


class Authorization(Protocol):
    """Where the send loop gets the value of ``Authorization``.

    It is an access token that is renewed, or the key itself.
    """

    @property
    def credentials(self) -> Credentials:
        """The key. Its secret is cut out of every text of a server."""
        ...

    def current(self, now: float) -> Token | None:
        """The token to send with now; ``None`` if the call must wait for a token."""
        ...

    async def get(self, lifetime: Lifetime) -> Token:
        """The token, fetched if there is none.

        Raises TokenError, and ClientStateError when ``lifetime`` ends.
        """
        ...

    def refused(self, token: Token, project: Hashable, now: float) -> bool:
        """The API answered 401 to ``token``. True: an attempt with another token may succeed."""
        ...

    def missing(self, now: float) -> SinchError | None:
        """Why there is no token at the moment; ``None`` if there is one, or if nothing is known."""
        ...
