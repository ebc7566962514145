"""The words are the specification's, to the letter."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from sinch_conv_async import Channel, Direction, MessagesSource, ProcessingMode, Region

WORDS = {
    Channel: (
        "WHATSAPP RCS SMS MESSENGER VIBERBM MMS INSTAGRAM TELEGRAM KAKAOTALK KAKAOTALKCHAT LINE WECHAT APPLEBC"
    ),
    Direction: "TO_APP TO_CONTACT",
    ProcessingMode: "CONVERSATION DISPATCH",
    MessagesSource: "CONVERSATION_SOURCE DISPATCH_SOURCE",
    Region: "us eu br",
}
MEMBERS = [member for words in WORDS for member in words]


@pytest.mark.parametrize("words", WORDS)
def test_an_enum_has_the_words_of_the_specification_and_no_other(words):
    assert [member.value for member in words] == WORDS[words].split()


def test_a_member_is_its_wire_text_wherever_text_is_taken():
    for member in MEMBERS:
        text = member.value
        assert type(text) is str
        assert member == text
        assert hash(member) == hash(text)
        assert str(member) == f"{member}" == text
        assert json.dumps(member) == json.dumps(text)


def test_a_member_stays_itself_when_it_is_copied_and_pickled():
    for member in MEMBERS:
        assert (
            copy.copy(member)
            is copy.deepcopy(member)
            is pickle.loads(pickle.dumps(member))
            is member
        )
