"""Certificates for the servers of a test, good ones and bad ones, from an authority that lives as
long as the test.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trustme

if TYPE_CHECKING:
    import datetime


class Authority:
    """A certificate authority whose certificates nginx can read from ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()

    def context(self) -> ssl.SSLContext:
        """What makes a client trust it, and nobody else."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def issue(
        self, *names: str, not_after: datetime.datetime | None = None, by: Authority | None = None
    ) -> str:
        """nginx' directives for a certificate with these names."""
        given: dict[str, Any] = {} if not_after is None else {"not_after": not_after}
        issuer = by or self
        certificate = issuer.authority.issue_cert(*names, **given)
        path = (
            self.directory
            / f"{names[0].replace('.', '-')}-{len(list(self.directory.iterdir()))}.pem"
        )
        certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
        return f"ssl_certificate {path}; ssl_certificate_key {path};"
