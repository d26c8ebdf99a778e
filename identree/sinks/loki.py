"""
The sink for Loki (spec/audit-and-metrics section 9).

Loki orders the lines of a stream by time and drops a line that it has already with the same time. So a batch that is
sent again has the times of its first sending, for as long as Loki would take them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from identree.core.audit import Sealed
from identree.sinks.follower import Unavailable
from identree.sinks.formats import Format
from identree.sinks.http import BATCH, LINGER_SECONDS, REQUEST_SECONDS, Answer, Client, Names, Receiver, parse_address
from identree.sinks.tls import ClientTrust

URL_SETTING = "IDENTREE_AUDIT_LOKI_URL"
TOKEN_SETTING = "IDENTREE_AUDIT_LOKI_TOKEN"  # noqa: S105  the name of the setting
TENANT_SETTING = "IDENTREE_AUDIT_LOKI_TENANT"
GZIP_SETTING = "IDENTREE_AUDIT_LOKI_GZIP"

PUSH = "/loki/api/v1/push"
# Times of a batch are kept for repetitions this long. Loki refuses what is an hour behind the newest line of its stream
# (half of max_chunk_age), and other replicas write into the same stream; so they are renewed well before.
TIMES_NS = 10 * 60 * 1_000_000_000

_HEAD = b'{"streams":[{"stream":{"app":"identree","job":"identree-audit"},"values":['
_TAIL = b"]}]}"
# What Loki calls a time that it does not take. Times are those of sending, so no record is at fault.
_ABOUT_TIME = ("too far behind", "out of order", "timestamp too old", "timestamp too new")
_BAD_REQUEST = 400


class Loki:
    """
    Implements :class:`identree.sinks.follower.Shipper`.

    :param url: base URL; slashes at its end do not count.
    :param token: sent as a bearer token. Without one, a login in the URL is used.
    :param tenant: for a Loki of several; empty: none.
    :param now_ns: nanoseconds since the epoch.
    :raise ValueError: the URL is none.
    """

    name = "loki"
    batch = BATCH
    linger_seconds = LINGER_SECONDS
    settle_seconds = 0.0

    def __init__(
        self,
        url: str,
        token: str,
        *,
        tenant: str,
        agent: Client,
        trust: ClientTrust | None,
        form: Format,
        gzip: bool,
        clock: IReactorTime,
        now_ns: Callable[[], int],
        request_seconds: float = REQUEST_SECONDS,
        log: Logger | None = None,
    ) -> None:
        address = parse_address(url)
        self._url = address.origin + address.path.rstrip("/") + PUSH + address.query
        self._form = form
        self._now_ns = now_ns
        headers = {}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        elif address.login:
            headers["Authorization"] = address.basic
        if tenant:
            headers["X-Scope-OrgID"] = tenant
        self._receiver = Receiver(
            self.name,
            Names(
                url=URL_SETTING,
                gzip=GZIP_SETTING,
                access=f"check {TOKEN_SETTING} and {TENANT_SETTING}",
            ),
            headers,
            secrets=(token, *address.secrets),
            agent=agent,
            trust=trust,
            compress=gzip,
            clock=clock,
            request_seconds=request_seconds,
            log=log,
        )
        self._last_ns = 0
        # by record, of the batch under way; its halves are looked up here too
        self._times: dict[tuple[str, int], int] = {}
        self.lost: Callable[[], None] = lambda: None

    async def ship(self, records: Sequence[Sealed]) -> None:
        times = self._timed(records)
        answer = await self._receiver.send(self._url, lambda: self._push(records, times))
        if self._is_about_time(answer):
            self._times.clear()
            raise Unavailable(
                f"{self._receiver.quoted(answer)}; compare the clocks of this machine and of Loki; the records get the "
                "time of the next attempt"
            )
        self._receiver.check(answer, records)
        self._receiver.taken(records)
        for record in records:
            self._times.pop((record.instance, record.seq), None)

    async def close(self) -> None:
        await self._receiver.close()

    def _timed(self, records: Sequence[Sealed]) -> list[int]:
        """
        A time for every record, in nanoseconds, strictly increasing. What is repeated keeps its times: the same batch,
        with more records behind it or in parts.
        """
        now = self._now_ns()
        keys = [(record.instance, record.seq) for record in records]
        known = [self._times[key] for key in keys if key in self._times]
        if not known or any(abs(now - time) > TIMES_NS for time in known):
            self._times.clear()
        # after a step of the clock to the past, waiting for it to catch up would be refused as the future
        if self._last_ns - now > TIMES_NS:
            self._last_ns = 0
        for key in keys:
            if key not in self._times:
                self._times[key] = self._last_ns = max(now, self._last_ns + 1)
        return [self._times[key] for key in keys]

    def _push(self, records: Sequence[Sealed], times: Sequence[int]) -> Iterator[bytes]:
        before = _HEAD
        for record, time in zip(records, times, strict=True):
            line = json.dumps(self._form.wire(record).decode(errors="replace"), ensure_ascii=False)
            yield before + f'["{time}",{line}]'.encode()
            before = b","
        yield _TAIL

    @staticmethod
    def _is_about_time(answer: Answer) -> bool:
        said = answer.body.decode(errors="replace").lower()
        return answer.status == _BAD_REQUEST and any(words in said for words in _ABOUT_TIME)
