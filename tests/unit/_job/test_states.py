"""How the records stand after a journal's lines, and what it takes to know it."""

from __future__ import annotations

from typing import Any

import attrs
import hypothesis
import pytest
from hypothesis import strategies as st

from sinch_conv_async._job.ledger import Entry, Outcome
from sinch_conv_async._job.states import MAX_GAP, IdMap, States

UPDATED, FAILED, INVALID, SUPERSEDED, UNCHANGED = Outcome


def line(record: int, outcome: Outcome, message_id: str | None = None, **more: Any) -> Entry:
    return Entry(record=record, outcome=outcome, message_id=message_id, **more)


@attrs.frozen
class Item:
    number: int
    digest: str


@pytest.mark.parametrize(
    ("lines", "states"),
    [
        ([], [None]),
        ([line(1, UPDATED, "A"), line(3, FAILED, "B")], [UPDATED, None, FAILED, None]),
        # The last line of a record counts.
        ([line(1, FAILED, "A"), line(1, UPDATED, "A")], [UPDATED]),
        ([line(1, FAILED, "A"), line(1, FAILED, "A")], [FAILED]),
        # A later record of the id was updated: the failed one would bring old metadata back.
        ([line(1, FAILED, "A"), line(2, UPDATED, "A")], [SUPERSEDED, UPDATED]),
        (
            [line(1, FAILED, "A"), line(2, FAILED, "A"), line(3, UPDATED, "A")],
            [SUPERSEDED, SUPERSEDED, UPDATED],
        ),
        (
            [line(1, FAILED, "A"), line(2, UPDATED, "A"), line(3, FAILED, "A")],
            [SUPERSEDED, UPDATED, FAILED],
        ),
        # An earlier one, or another id, supersedes nothing.
        ([line(2, FAILED, "A"), line(1, UPDATED, "A")], [UPDATED, FAILED]),
        ([line(1, FAILED, "A"), line(2, UPDATED, "B")], [FAILED, UPDATED]),
        ([line(1, FAILED, "A"), line(2, FAILED, "A")], [FAILED, FAILED]),
        # Updated by the next run, before the later one.
        (
            [
                line(1, FAILED, "A"),
                line(2, FAILED, "A"),
                line(1, UPDATED, "A"),
                line(2, UPDATED, "A"),
            ],
            [UPDATED, UPDATED],
        ),
        # Written out, it is final.
        (
            [line(1, FAILED, "A"), line(1, SUPERSEDED, "A", by=2), line(2, UPDATED, "A")],
            [SUPERSEDED, UPDATED],
        ),
        ([line(1, SUPERSEDED, "A", by=2), line(1, FAILED, "A")], [SUPERSEDED]),
        ([line(1, INVALID), line(2, UPDATED)], [INVALID, UPDATED]),
    ],
)
def test_states_follow_from_the_lines(lines: list[Entry], states: list[Outcome | None]) -> None:
    found = States()
    for each in lines:
        found.apply(each)
    assert [found[number] for number in range(1, len(states) + 1)] == states
    assert found.counts == {outcome: states.count(outcome) for outcome in Outcome}
    assert found.last == max((each.record for each in lines), default=0)


def test_what_a_success_supersedes_is_written_before_it() -> None:
    states = States()
    for record in (1, 2, 4):
        states.apply(line(record, FAILED, "A"))
    assert states.superseded(3, "A") == [
        line(1, SUPERSEDED, "A", by=3),
        line(2, SUPERSEDED, "A", by=3),
    ]
    assert states.superseded(3, "B") == []


@hypothesis.given(
    st.lists(
        st.tuples(st.integers(1, 40), st.sampled_from([UPDATED, FAILED]), st.integers(0, 8)),
        max_size=150,
    )
)
def test_states_agree_with_the_plain_rule(events: list[tuple[int, Outcome, int]]) -> None:
    states, plain, ids = States(), {}, {}
    for record, outcome, name in events:
        if plain.get(record) in (UPDATED, SUPERSEDED):
            continue  # final: no run would write it
        message_id = ids.setdefault(record, str(name))
        states.apply(line(record, outcome, message_id))
        plain[record] = outcome
        if outcome is UPDATED:
            for earlier in plain:
                if earlier < record and ids[earlier] == message_id and plain[earlier] is FAILED:
                    plain[earlier] = SUPERSEDED
    assert {record: states[record] for record in plain} == plain
    assert sum(states.counts.values()) == len(plain)


def test_ten_thousand_failures_are_each_found_by_their_id() -> None:
    states = States()
    for record in range(1, 10_001):
        states.apply(line(record, FAILED, f"id-{record % 9_000}"))
    assert [found.record for found in states.superseded(10_001, "id-7")] == [7, 9_007]
    assert [found.record for found in states.superseded(10_001, "id-8000")] == [8_000]


def test_digests_tell_another_record_from_the_one_that_was_sent() -> None:
    states = States(digests=True)
    states.apply(line(2, UPDATED, "A", digest="00000000ffffffff"))
    states.apply(line(3, FAILED, "A", digest="zz"))
    states.apply(line(4, SUPERSEDED, "A"))
    assert states.agrees(Item(2, "00000000aaaaaaaa"))  # 32 bits are kept
    assert not states.agrees(Item(2, "1111111100000000"))
    assert states.agrees(Item(3, "00000001aaaaaaaa"))  # nonsense is some number
    assert states.agrees(Item(1, "1111111100000000"))  # never named
    assert states.agrees(Item(9, "1111111100000000"))
    assert States().agrees(Item(2, "1111111100000000"))


@pytest.mark.parametrize(
    "outcomes", ["fuf", "ffu", "fufu", "fiffu"], ids=lambda outcomes: f"outcomes {outcomes}"
)
def test_a_record_that_fails_again_after_another_outcome_is_in_order(outcomes: str) -> None:
    """Whoever writes a line by hand, to have a record sent again, may say so."""
    words = {"f": Outcome.FAILED, "u": Outcome.UPDATED, "i": Outcome.INVALID}
    states = States()
    states.apply(line(1, Outcome.FAILED, "A"))
    states.apply(line(2, Outcome.FAILED, "A"))
    for outcome in outcomes:
        states.apply(line(1, words[outcome], "A"))
    assert states[1] is words[outcomes[-1]]
    assert sum(states.counts.values()) == 2
    assert [found.record for found in states.superseded(3, "A")] == (
        [1, 2] if outcomes == "fuf" else [2]
    )


def test_many_failures_of_one_id_are_superseded_one_by_one_in_no_time() -> None:
    """Each record is looked at a few times, and not once for each update: 20,000 took 18 s."""

    class Counted(States):
        looks = 0

        def __getitem__(self, record: int) -> Outcome | None:
            Counted.looks += 1
            return super().__getitem__(record)

    number = 2_000
    states = Counted()
    for record in range(1, number + 1):
        states.apply(line(record, FAILED, "A"))
    for record in range(1, number + 1):
        assert states.superseded(record, "A") == []
        states.apply(line(record, UPDATED, "A"))
    assert states.counts[UPDATED] == number
    assert Counted.looks < 10 * number


@hypothesis.given(st.permutations(range(1, 12)), st.lists(st.integers(1, 12)))
def test_failed_records_are_found_whatever_order_they_came_in(
    order: list[int], asked: list[int]
) -> None:
    states, left = States(), set(order)
    for record in order:
        states.apply(line(record, FAILED, "A"))
    for record in asked:
        below = sorted(each for each in left if each < record)
        assert [entry.record for entry in states.superseded(record, "A")] == below
        states.apply(line(record, UPDATED, "A"))
        left -= {*below, record}


def test_of_a_merge_nothing_is_superseded() -> None:
    states = States(supersedes=False)
    for entry in (line(1, FAILED, "A"), line(2, UPDATED, "A")):
        states.apply(entry)
    assert states.superseded(3, "A") == []
    assert states[1] is FAILED


def test_a_record_number_that_cannot_be_right_is_refused() -> None:
    states = States(digests=True, reasons=True)
    states.apply(line(MAX_GAP, UPDATED))
    with pytest.raises(ValueError, match=r"record 4,294,967,295 cannot follow record 1,000,000"):
        states.apply(line(2**32 - 1, UPDATED))
    assert states.last == MAX_GAP


def test_reasons_are_kept_of_what_failed_last() -> None:
    states = States(reasons=True)
    states.apply(line(1, FAILED, error="ServerError", http_status=503))
    states.apply(line(2, FAILED))
    states.apply(line(1, FAILED, error="NotFoundError", http_status=404, status="NOT_FOUND"))
    states.apply(line(3, INVALID, reason="not JSON"))
    assert [states.reason(record) for record in (1, 2, 3, 9)] == [
        "404 NotFoundError NOT_FOUND",
        "",
        "not JSON",
        "",
    ]
    assert States().reason(1) == ""


def test_more_reasons_than_are_kept_leave_the_last_ones_out() -> None:
    states = States(reasons=True)
    for record in range(1, 2**16 + 2):
        states.apply(line(record, FAILED, reason=f"{record}"))
    assert states.reason(2**16 - 1) == "65535"
    assert states.reason(2**16) == ""


def test_ids_have_no_case() -> None:
    states = States()
    states.apply(line(1, FAILED, "01ABC"))
    assert states.superseded(2, "01abc") == [line(1, SUPERSEDED, "01abc", by=2)]


@hypothesis.given(st.dictionaries(st.text("abcdé", max_size=4), st.integers(1, 2**32 - 1)))
def test_an_id_map_is_a_map(numbers: dict[str, int]) -> None:
    found = IdMap()
    for name, number in numbers.items():
        assert found[name] == 0
        found[name] = number
    assert {name: found[name] for name in numbers} == numbers
