"""What an update queue takes."""

from __future__ import annotations

import pytest

from sinch_conv_async import ConversationClient, InvalidArgumentError, UpdateQueue


@pytest.fixture
def client():
    return ConversationClient(
        project_id="p", key_id="k", key_secret="secret", conversation_region="eu"
    )


def test_what_cannot_be_right_is_refused_where_it_is_put(client):
    queue = UpdateQueue(client)
    for arguments in (("../m1", "x"), ("m1", "x" * 1025), ("m1", None)):
        with pytest.raises(InvalidArgumentError):
            queue.put_nowait(*arguments)
    with pytest.raises(InvalidArgumentError):
        queue.put_nowait("m1", "x", messages_source="ELSEWHERE")
    assert len(queue) == 0
    for options in ({"max_size": 0}, {"max_size": 1.5}, {"on_outcome": 1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(options))):
            UpdateQueue(client, **options)
