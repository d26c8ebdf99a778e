"""Messages: how soon a burst of requests has been told."""

from __future__ import annotations

import itertools
import json
import statistics
import time

from benchmarks.audit import receivers
from benchmarks.client import Loop, closed_loop
from benchmarks.hosts import Crowd
from benchmarks.report import Report, Result
from benchmarks.server import served, temporary_directory

REQUESTS = 500
RUNS = 5
MESSAGES_PER_SECOND = 100
# A channel is sent so many at a time.
CONNECTIONS = 10


def burst(report: Report) -> None:
    """From the first of as many requests, made as fast as the server takes them, until the webhook has the last."""
    with receivers() as there, temporary_directory() as directory:
        url = f"http://127.0.0.1:{there.ports['webhook']}/"
        channels = directory / "channels.json"
        channels.write_text(
            json.dumps(
                {
                    "channels": [{"name": "inbox", "backend": "webhook", "url": url}],
                    "routes": [{"channels": ["inbox"], "events": ["challenge_created"]}],
                }
            )
        )
        settings = {
            "IDENTREE_NOTIFICATION_CONFIG_FILE": str(channels),
            "IDENTREE_NOTIFY_ALLOWED_NETWORKS": "127.0.0.0/8",
            "IDENTREE_CHALLENGE_TTL": "10m",
        }
        rates, created = [], []
        with served(settings) as server, Loop() as loop:
            crowd = Crowd(loop, server.port)
            for run in range(RUNS + 1):
                there.order(REQUESTS, ("webhook",))
                begun = time.monotonic()
                crowd.create(REQUESTS, f"r{run}u")
                created.append(REQUESTS / (time.monotonic() - begun))
                rates.append(REQUESTS / (there.complete()["webhook"] - begun))
                if run == 0:
                    server.turns()
            turns = str(server.turns())
        post = b'POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 29\r\n\r\n{"event":"challenge_created"}'
        bare = closed_loop(there.ports["webhook"], itertools.repeat(post), CONNECTIONS, 1.0)
    report.add(
        Result(
            name=f"{REQUESTS} requests at once, created and told to a webhook",
            unit="/s",
            target=MESSAGES_PER_SECOND,
            at_least=True,
            # the first is that of the start
            runs=rates[1:],
            peer=f"created, and recorded, {statistics.median(created[1:]):,.0f}/s while the first are told; a sender "
            f"with nothing behind it, {CONNECTIONS} connections that stay open, {bare.rate:,.0f}/s",
            reactor=turns,
        )
    )
