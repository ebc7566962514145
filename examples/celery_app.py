"""celery --workdir examples -A celery_app worker -P threads -c 8"""

from __future__ import annotations

import os

from celery import Celery
from sync_client import sinch

from sinch_conv_async import RateLimitedError, ServerError, TransportError

app = Celery("tags", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost"))


@app.task(
    ignore_result=True,
    autoretry_for=(RateLimitedError, ServerError, TransportError),
    retry_backoff=True,
)
def tag(message_id: str, metadata: str) -> None:
    sinch.update_message_metadata(message_id, metadata, timeout=60.0)
