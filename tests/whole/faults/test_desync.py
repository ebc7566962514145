"""Answers that belong to somebody else, on kept-alive connections, under load. The server is a
script on a socket.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter

import pytest

from tests.servers import Peer, Server, http
from tests.whole.faults import naive
from tests.whole.faults.matrix import bulk, judge, judge_bulk, single, updates
from tests.whole.faults.programs import TOKEN_ANSWER, options

JSON = "Content-Type: application/json"

FAULTS = {
    "swapped": "2 % of answers are for another message",
    "late answer": "2 % of answers followed 5 ms later by another 200",
    "late error": "2 % of answers followed on the idle connection by a 404",
}


def answer(message_id: str) -> bytes:
    return http(200, json.dumps({"id": message_id, "metadata": f"set-{message_id}"}).encode(), JSON)


def confused(what: str) -> Server:
    rng = random.Random(7)
    stranger = answer("01SOMEBODYELSE")
    nobody = http(
        404, b'{"error":{"code":404,"status":"NOT_FOUND","message":"No such message."}}', JSON
    )

    async def script(peer: Peer) -> None:
        shifted = False  # nothing can be shifted before the first answer of a connection
        while True:
            received = await peer.receive()
            if received.target == "/oauth2/token":
                server.received.pop()
                await peer.send(http(200, TOKEN_ANSWER.encode(), JSON))
                continue
            usual = answer(received.message_id)
            if not shifted or rng.random() >= 0.02:
                shifted = True
                await peer.send(usual)
            elif what == "swapped":
                await peer.send(stranger)
            else:
                await peer.send(usual)
                await asyncio.sleep(0.005)
                await peer.send(usual if what == "late answer" else nobody)

    server = Server(script)
    return server


@pytest.mark.parametrize("what", FAULTS)
async def test_an_answer_that_belongs_to_another_call_is_given_to_none(table, what):
    calls = updates(250 if what == "late error" else 1000, family="DESYNC")
    # An error has no id by which to tell whose it is, so one that comes while a call is under way
    # is taken for that call's by every HTTP/1.1 client. What can be told is that nothing had been
    # asked: here each call leaves its connection idle for a while. It is idle for much longer than
    # the error takes, also on a machine that stalls.
    traffic = (
        {"concurrency": 1, "pause": lambda: 0.03} if what == "late error" else {"concurrency": 20}
    )

    def applied(server: Server) -> Counter[str]:
        return Counter(received.message_id for received in server.received)

    told = None
    if naive.RUN:
        async with confused(what) as server:
            plain = await naive.loop(options(server.origin), calls, **traffic)
            wrong = sum(
                end.misattributed or type(end.error).__name__ == "ClientResponseError"
                for end in plain.ended
            )
            bitten = plain.failures(applied(server))
            assert bitten == wrong > 0
            told = f"{bitten:,} (all given to the wrong call)"

    if what != "late error":
        async with confused(what) as server:
            job = await bulk({**options(server.origin), "rate_limit": None}, calls, concurrency=20)
            judge_bulk(job, applied(server))
            table.add(FAULTS[what], "bulk", job, naive=told)

    async with confused(what) as server:
        ours = await single({**options(server.origin), "rate_limit": None}, calls, **traffic)
        judge(ours, applied(server))
        assert not ours.errors
        table.add(FAULTS[what], "single", ours, naive=told)
