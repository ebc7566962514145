"""What a bulk job refuses before it begins. tests/whole/test_bulk.py has what it does."""

from __future__ import annotations

import pytest

from sinch_conv_async import ConversationClient, InvalidArgumentError, MetadataUpdate


@pytest.fixture
def client() -> ConversationClient:
    return ConversationClient(project_id="p", key_id="k", key_secret="s", conversation_region="us")


@pytest.mark.parametrize("concurrency", [0, -1, 2.0, True, "2"])
def test_concurrency_is_a_whole_number(client, concurrency):
    with pytest.raises(InvalidArgumentError, match="concurrency"):
        client.update_many([], concurrency=concurrency)


@pytest.mark.parametrize("updates", [None, 7, MetadataUpdate("m1", "new")])
def test_what_is_no_iterable_is_refused_at_once(client, updates):
    with pytest.raises(InvalidArgumentError, match="updates must be an iterable"):
        client.update_many(updates)
