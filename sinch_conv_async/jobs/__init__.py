"""Jobs that outlive their machine: updates in a PostgreSQL database, sent by any live worker.

Needs the ``[jobs]`` extra.
"""

from __future__ import annotations

from .._job.input import InputError, Layout
from .errors import JobNotFoundError, JobStateError, JobStoreError, SchemaError
from .store import FailedRecord, JobOutcome, JobStatus, JobStore
from .worker import RETAKE_AFTER, WorkerReport, run_worker

__all__ = [
    "RETAKE_AFTER",
    "FailedRecord",
    "InputError",
    "JobNotFoundError",
    "JobOutcome",
    "JobStateError",
    "JobStatus",
    "JobStore",
    "JobStoreError",
    "Layout",
    "SchemaError",
    "WorkerReport",
    "run_worker",
]
