"""The one exchange that every client makes: ids, credentials, a request's text and the recorded
answer.

Knows no client and no server. Standard library only, since clients from other environments import
it.
"""

import json
from typing import Final

PROJECT_ID: Final = "5b0c7a52-4d5e-4a43-9d0d-2f6f0f9a7c11"
KEY_ID: Final = "8f1d9c3e-27b4-4b0e-a5a3-61c2d7e4f908"
KEY_SECRET: Final = "benchmark-key-secret"
MESSAGE_ID: Final = "01HRWQ5T9E7Z3K8M2V4N6P0B1C"
METADATA: Final = '{"ticket":"48213","state":"closed","agent":"night shift"}'

# Sinch's tokens are JWTs of several hundred characters, and every request carries one: a short
# stand-in would make every client look cheaper than it is.
TOKEN: Final = ".".join(("eyJhbGciOiJSUzI1NiJ9", "c2FtcGxl" * 52, "dG9rZW4" * 32))

TOKEN_ANSWER: Final = json.dumps(
    {"access_token": TOKEN, "expires_in": 3599, "scope": "", "token_type": "bearer"},
    separators=(",", ":"),
)


def answer(message_id: str = MESSAGE_ID) -> str:
    """The body of a 200: every field that the specification names, and the text message it belongs
    to.
    """
    return json.dumps(
        {
            "id": message_id,
            "accept_time": "2026-03-18T09:41:27.318204Z",
            "app_message": {
                "text_message": {
                    "text": "Good evening, your parcel 48213 has been left at the front desk. It can be picked up "
                    "from seven in the morning until ten at night; please bring the code 7702 and something that "
                    "shows your name. Answer with MOVE should another day suit you better."
                }
            },
            "channel_identity": {"identity": "46700000042", "channel": "WHATSAPP", "app_id": ""},
            "contact_id": "01HRWQ2M6C5X1T9Y3D7F8G0H2J",
            "conversation_id": "01HRWQ2N0S4R6V8W1A3B5C7D9E",
            "direction": "TO_CONTACT",
            "metadata": METADATA,
            "injected": False,
            "sender_id": "46800000017",
            "processing_mode": "CONVERSATION",
        },
        separators=(",", ":"),
    )


def path(message_id: str) -> str:
    """The path that a change of metadata goes to."""
    return f"/v1/projects/{PROJECT_ID}/messages/{message_id}"
