"""Access: keys, projects, and the tokens that the OAuth2 token endpoint issues.

It knows no connection. It uses the sandbox's clock; only the text "Jwt expired at ..." has the real
time.
"""

from __future__ import annotations

import base64
import json
import math
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args
from urllib.parse import parse_qs

import attrs

from .limits import Bucket, Limit, Unlimited, Window
from .responses import (
    INVALID_CREDENTIALS,
    UNAUTHENTICATED,
    Response,
    expired,
    media_type,
    oauth_error,
    scripted,
)
from .thread import OwnThread, on_its_loop

__all__ = ["Access", "Key", "Project", "TokenRefusal", "check_word"]

TokenRefusal = Literal["expired", "revoked"]
"""The two forms of a 401: ``Jwt expired at ...`` in a Bearer challenge, or a problem document."""


@attrs.define(eq=False)
class Key:
    """An access key, and the projects that it opens."""

    id: str
    secret: str = attrs.field(repr=False)
    projects: set[str] = attrs.field(factory=set[str], repr=False)


@attrs.define(eq=False)
class Project:
    """A project, its access key and its limit."""

    id: str
    key: Key
    limit: Limit


@attrs.define(eq=False)
class _Token:
    key: Key
    expires_at: float
    revoked: bool = False


def check_word(name: str, word: str, words: tuple[str, ...]) -> None:
    """Raise ValueError unless the word is one of these."""
    if word not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, not {word!r}")


class Access(OwnThread):
    """The part of the sandbox that knows keys, projects and tokens."""

    def __init__(
        self,
        *,
        token_lifetime: float,
        token_burst: int,
        token_rate: float | None,
        clock: Callable[[], float],
    ) -> None:
        _check(token_lifetime, token_burst, token_rate)
        self.next_token: str | None = None
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._projects: dict[str, Project] = {}
        self._tokens: dict[str, _Token] = {}
        self._refusal: TokenRefusal | None = None
        self._token_lifetime = token_lifetime
        self._token_limit: Limit = (
            Unlimited() if token_rate is None else Bucket(token_rate, token_burst, clock())
        )

    @on_its_loop
    def add_project(
        self,
        project_id: str,
        *,
        key_id: str,
        key_secret: str,
        rate_limit: int | None = None,
        rate_burst: int | None = None,
    ) -> None:
        """Add a project with its access key and its rate limit, in requests a second.

        ``rate_limit`` and ``rate_burst`` mean what they mean for the sandbox. A known key gets
        access to this project too. Raises ValueError if the project exists, or if the key has
        another secret.
        """
        if project_id in self._projects:
            raise ValueError(f"project {project_id!r} exists already")
        key = self._keys.get(key_id)
        if key is not None and key.secret != key_secret:
            raise ValueError(f"key {key_id!r} exists already and has another secret")
        limit = _limit(rate_limit, rate_burst, self._clock())
        if key is None:
            key = self._keys[key_id] = Key(key_id, key_secret)
        self._projects[project_id] = Project(project_id, key, limit)
        key.projects.add(project_id)

    def _project(self, project_id: str | None) -> Project:
        """The project of this id, or the first one. Raises KeyError for an unknown project."""
        return self._projects[next(iter(self._projects)) if project_id is None else project_id]

    @on_its_loop
    def rotate_secret(self, key_id: str, new_secret: str) -> None:
        """Give a key another secret; the old secret gets ``invalid_client`` from now on.

        Tokens that were issued stay valid; :meth:`revoke_tokens` ends them. Raises KeyError for an
        unknown key.
        """
        self._keys[key_id].secret = new_secret

    @on_its_loop
    def expire_tokens(self) -> None:
        """Expire every token issued so far: 401 with ``Bearer error="invalid_token"``."""
        now = self._clock()
        for token in self._tokens.values():
            token.expires_at = min(token.expires_at, now)

    @on_its_loop
    def revoke_tokens(self) -> None:
        """Revoke every token issued so far: 401 as a problem document with a Basic challenge."""
        for token in self._tokens.values():
            token.revoked = True

    def refuse_tokens(self, form: TokenRefusal | None = "revoked") -> None:
        """Answer 401 in this form to every token, including new ones, until called with None."""
        if form is not None:
            check_word("form", form, get_args(TokenRefusal))
        self._refusal = form

    # For serving requests

    def _authenticate(self, authorization: str | None) -> tuple[Key | None, Response]:
        """The key of this Authorization header, or the 401 for a request without a valid key."""
        scheme, _, credentials = (authorization or "").partition(" ")
        if scheme.lower() == "basic":
            return self._basic_key(credentials)[0], INVALID_CREDENTIALS
        if self._refusal is not None:
            return None, expired(time.time()) if self._refusal == "expired" else INVALID_CREDENTIALS
        token = self._tokens.get(credentials) if scheme.lower() == "bearer" else None
        if token is None:
            return None, UNAUTHENTICATED
        if token.revoked:
            return None, INVALID_CREDENTIALS
        now = self._clock()
        if token.expires_at <= now:
            return None, expired(time.time() - (now - token.expires_at))
        return token.key, UNAUTHENTICATED

    def _basic_key(self, credentials: str) -> tuple[Key | None, str | None]:
        """The key that these Basic credentials open, and the user name in them (RFC 7617)."""
        try:
            name, colon, secret = (
                base64.b64decode(credentials, validate=True).decode().partition(":")
            )
        except ValueError:
            return None, None
        key = self._keys.get(name)
        return (key if colon and key is not None and key.secret == secret else None), name

    def _issue(
        self,
        method: str,
        content_type: str | None,
        body: bytes,
        key: Key | None,
        fields: Mapping[str, Any] | None,
    ) -> Response:
        """Answer a token request according to RFC 6749, sections 4.4 and 5."""
        complaint = _token_complaint(method, content_type, body)
        if complaint is not None:
            return complaint
        if key is None:
            challenge = ("WWW-Authenticate", 'Basic realm="Realm"')
            return scripted(401, oauth_error("invalid_client"), None, (challenge,))
        if fields is None:
            fields = self._fresh_token()
        access_token = fields.get("access_token")
        if isinstance(access_token, str):
            self._tokens[access_token] = _Token(key, self._clock() + self._token_lifetime)
        no_store = (("Cache-Control", "no-store"), ("Pragma", "no-cache"))
        return Response(200, json.dumps(dict(fields)).encode(), headers=no_store)

    def _fresh_token(self) -> Mapping[str, Any]:
        text, self.next_token = self.next_token, None
        lifetime = self._token_lifetime
        return {
            "access_token": secrets.token_urlsafe(48) if text is None else text,
            "expires_in": int(lifetime) if float(lifetime).is_integer() else lifetime,
            "scope": "",
            "token_type": "bearer",
        }


def _check(token_lifetime: float, token_burst: int, token_rate: float | None) -> None:
    if not (math.isfinite(token_lifetime) and token_lifetime >= 0):
        raise ValueError(
            f"token_lifetime must be a number of seconds, 0 or more, not {token_lifetime}"
        )
    if token_burst < 1:
        raise ValueError(f"token_burst must be at least 1, not {token_burst}")
    if token_rate is not None and not (math.isfinite(token_rate) and token_rate >= 0):
        raise ValueError(f"token_rate must be a number, 0 or more, or None, not {token_rate}")


def _limit(rate_limit: int | None, rate_burst: int | None, now: float) -> Limit:
    if rate_limit is None:
        if rate_burst is not None:
            raise ValueError("rate_burst needs a rate_limit")
        return Unlimited()
    if rate_limit < 1:
        raise ValueError(f"rate_limit must be at least 1, or None, not {rate_limit}")
    if rate_burst is None:
        return Window(rate_limit)
    if rate_burst < 1:
        raise ValueError(f"rate_burst must be at least 1, or None, not {rate_burst}")
    return Bucket(rate_limit, rate_burst, now)


def _token_complaint(method: str, content_type: str | None, body: bytes) -> Response | None:
    if method != "POST":
        return scripted(405, oauth_error("invalid_request"), None, (("Allow", "POST"),))
    if media_type(content_type) != "application/x-www-form-urlencoded":
        return scripted(400, oauth_error("invalid_request"))
    grant_types = parse_qs(body.decode("latin-1")).get("grant_type", [])
    if len(grant_types) != 1:
        return scripted(400, oauth_error("invalid_request"))
    if grant_types[0] != "client_credentials":
        return scripted(400, oauth_error("unsupported_grant_type"))
    return None
