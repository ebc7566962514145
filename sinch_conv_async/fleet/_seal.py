"""How a token is kept in a store: under a name that tells nothing, and sealed.

The store never sees the key that seals it.

Name and sealing key both come from the key secret by HKDF (RFC 5869), so a rotated secret is
another name and another key. Whoever reads the store learns how many tokens there are, and no more.
Whoever writes to it can delete a token, bring back an older one of the same key, or hold the lock:
that costs token requests, a 401 or a wait. It cannot make a process accept a token of its own
making.
"""

from __future__ import annotations

import base64
import json

import attrs
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from . import TokenKey

__all__ = ["Seal"]

_NAME_BYTES = 16
_FERNET_KEY_BYTES = 32


@attrs.frozen
class Seal:
    """The name of one key's token in a store, and what seals and opens it."""

    name: str
    _fernet: Fernet = attrs.field(repr=False, eq=False)

    @classmethod
    def of(cls, key: TokenKey) -> Seal:
        """The seal of an access key at one token endpoint."""

        def derived(purpose: bytes, length: int) -> bytes:
            # JSON keeps the two texts apart, whatever they hold.
            context = json.dumps([key.auth_origin, key.key_id]).encode()
            hkdf = HKDF(SHA256(), length, salt=None, info=b"sinch_conv_async " + purpose + context)
            return hkdf.derive(key.key_secret.encode())

        fernet = Fernet(base64.urlsafe_b64encode(derived(b"seal ", _FERNET_KEY_BYTES)))
        return cls(derived(b"name ", _NAME_BYTES).hex(), fernet)

    def close(self, access_token: str) -> str:
        """The token as it may lie in a store."""
        return self._fernet.encrypt(access_token.encode()).decode("ascii")

    def open(self, sealed: str) -> str | None:
        """The token, None where this key has not sealed the text."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except (InvalidToken, UnicodeDecodeError, ValueError):
            return None
