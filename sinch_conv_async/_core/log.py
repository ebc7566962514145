"""Log records of the package: structured, and never able to decide what becomes of a call.

The fields of a record are one mapping, in the attribute ``sinch_conv_async``. A name of its own
cannot meet an attribute that the user's record factory sets, which :mod:`logging` answers with
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
"""Whether records of a level go anywhere; to be asked before fields are put together on the way of
each call.
"""


def log(level: int, text: str, *values: object, **fields: Any) -> None:
    """Logs one record, with ``fields`` as its attribute ``sinch_conv_async``."""
    try:
        # An error is logged as its text: a record that somebody keeps must not keep the error's
        # frames.
        values = tuple(str(value) if isinstance(value, Exception) else value for value in values)
        _logger.log(level, text, *values, extra={"sinch_conv_async": fields}, stacklevel=2)
    except Exception:  # noqa: BLE001  # a factory or filter of the user's raised; the call goes on
        if logging.raiseExceptions and sys.stderr is not None:
            traceback.print_exc()  # what logging does when a handler raises
