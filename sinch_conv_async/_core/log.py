"""Structured log records. A failure to log never fails a call.

All fields of a record are in one mapping, its attribute ``sinch_conv_async``. Separate attributes
could have the name of one that the user's record factory sets, and :mod:`logging` then raises
KeyError.
"""

from __future__ import annotations

import logging
import sys
import traceback
from typing import Any, Final

__all__ = ["DEBUG", "ERROR", "INFO", "WARNING", "log", "logs"]

DEBUG: Final = logging.DEBUG
INFO: Final = logging.INFO
WARNING: Final = logging.WARNING
ERROR: Final = logging.ERROR

_logger: Final = logging.getLogger("sinch_conv_async")

logs: Final = _logger.isEnabledFor
"""Whether records of a level are handled. Ask it first, so that calls build no fields in vain.
"""


def log(level: int, text: str, *values: object, **fields: Any) -> None:
    """Log one record, with ``fields`` as its attribute ``sinch_conv_async``."""
    try:
        # An error is logged as its text, because a record that is kept would keep the error's
        # frames.
        values = tuple(str(value) if isinstance(value, Exception) else value for value in values)
        _logger.log(level, text, *values, extra={"sinch_conv_async": fields}, stacklevel=2)
    except Exception:  # noqa: BLE001  # the user's factory or filter raised; the call goes on
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()  # logging does the same when a handler raises
