"""Runs the command line without starting a Python for each run: imports it once, and forks for
every request.

``python -m tests.whole.forker 3``: takes requests from the socket with this number. A request is
JSON (arguments, folder, environment) and four descriptors: standard input, output and error, and
the one to report on. Reported are the child's process id and, when the child has ended, its wait
status, a line each. The end of the socket ends it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
from typing import Any

import sinch_conv_async.cli
import sinch_conv_async.sandbox  # noqa: F401  # every child finds both imported
from sinch_conv_async.__main__ import main

LONGEST = 1 << 20  # bytes of a request


def be(request: dict[str, Any], descriptors: list[int]) -> None:
    """Make this process like a Python that was just started in this way."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv[1:] = request["arguments"]
    # They are open as long as the process is.
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", errors="backslashreplace", closefd=False, buffering=1
    )


def serve(requests: socket.socket) -> None:
    """Return in each child, and at the end of the socket."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}
    while True:
        for ready, _ in poll.poll():
            if ready in children:
                child, report = children.pop(ready)
                with contextlib.suppress(BrokenPipeError):  # no test waits for it any more
                    os.write(report, b"%d\n" % os.waitpid(child, 0)[1])
                poll.unregister(ready)
                os.close(ready)
                os.close(report)
                continue
            said, descriptors, _, _ = socket.recv_fds(requests, LONGEST, 4)
            if not said:
                requests.close()
                sys.exit()
            *standard, report = descriptors
            if (child := os.fork()) == 0:
                for descriptor in (report, requests.detach(), *children):
                    os.close(descriptor)
                for _, other in children.values():
                    os.close(other)
                be(json.loads(said), standard)
                return
            for descriptor in standard:
                os.close(descriptor)
            os.write(report, b"%d\n" % child)
            ended = os.pidfd_open(child)
            children[ended] = (child, report)
            poll.register(ended, select.POLLIN)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
