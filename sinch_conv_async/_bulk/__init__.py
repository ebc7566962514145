"""The parts that run a bulk job.

:mod:`sinch_conv_async.bulk` has the user's object and the overview.

In reading order: ``job`` (the tasks of a job), ``input`` (what it reads), ``items`` (what it does
for each item), ``rounds`` (how it sends a call, and waits for the API), ``outage`` (what follows
from a failed call; pure), ``outcomes`` (what the reader takes), ``state`` (what these share).
"""
