"""gunicorn --chdir examples --threads 8 flask_app:app"""

from __future__ import annotations

from flask import Flask, request
from sync_client import sinch

from sinch_conv_async import CallTimeoutError, NotFoundError, RateLimitedError

app = Flask(__name__)


@app.put("/messages/<message_id>")
def put_metadata(message_id: str):
    message = sinch.update_message_metadata(message_id, request.get_data(as_text=True))
    return {"id": message.id, "metadata": message.metadata}


@app.errorhandler(NotFoundError)
def not_found(error: NotFoundError):
    return {"error": "no such message"}, 404


@app.errorhandler(CallTimeoutError)
@app.errorhandler(RateLimitedError)
def busy(error: Exception):
    return {"error": "too busy just now"}, 503, {"Retry-After": "5"}
