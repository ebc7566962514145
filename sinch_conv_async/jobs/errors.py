"""The errors of the store of jobs, as part of the tree of errors."""

from __future__ import annotations

from ..errors import SinchError

__all__ = ["JobNotFoundError", "JobStateError", "JobStoreError", "SchemaError"]


class JobStoreError(SinchError):
    """The database gives no answer, or not a usable one.

    The text names the kind of problem. It quotes no statement, no row and no password.
    """


class SchemaError(JobStoreError):
    """The tables are missing, or this version of the package cannot work with them."""


class JobNotFoundError(JobStoreError):
    """There is no job with this id."""


class JobStateError(JobStoreError):
    """The job is in a state in which this cannot be done."""
