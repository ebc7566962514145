"""Keeps a token in a store: encrypted, under a name that reveals nothing.

The store never sees the key that seals it.

Name and sealing key both come from the key secret by HKDF (RFC 5869), so a rotated secret is
another name and another key. A reader of the store learns only how many tokens there are. A writer
to the store can delete a token, bring back an older one of the same key, or hold the lock: that
costs token requests, a 401 or a wait. A writer cannot make a process accept a forged token.
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
    """The name of one key's token in a store, with its encryption and decryption."""

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
        """The encrypted token, for a store."""
        return self._fernet.encrypt(access_token.encode()).decode("ascii")

    def open(self, sealed: str) -> str | None:
        """The token; None if the text was not encrypted with this key."""
        try:
            return self._fernet.decrypt(sealed).decode()
        except (InvalidToken, UnicodeDecodeError, ValueError):
            return None
