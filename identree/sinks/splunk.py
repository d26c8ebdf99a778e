"""
The sink for Splunk's HTTP event collector (spec/audit-and-metrics section 8).

A token with indexer acknowledgement answers with a number; such a batch counts only once the collector says that it is
indexed. Behind a load balancer this needs sessions that stay with one indexer, as Splunk demands of every sender.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from identree.core.audit import Sealed
from identree.sinks.follower import Unavailable
from identree.sinks.formats import Format
from identree.sinks.http import BATCH, LINGER_SECONDS, REQUEST_SECONDS, Answer, Client, Names, Receiver, parse_address
from identree.sinks.tls import ClientTrust

URL_SETTING = "IDENTREE_AUDIT_SPLUNK_HEC_URL"
TOKEN_SETTING = "IDENTREE_AUDIT_SPLUNK_TOKEN"  # noqa: S105  the name of the setting
GZIP_SETTING = "IDENTREE_AUDIT_SPLUNK_GZIP"

# Between questions for an acknowledgement, in seconds: doubled from the first to the last.
FIRST_ACK_SECONDS = 0.25
LONGEST_ACK_SECONDS = 4.0
# How long the indexer is given before the batch is sent again.
ACK_PATIENCE_SECONDS = 60.0

_COLLECTOR = "/collector"
_HEAD = b'{"event":'
_TAIL = b',"sourcetype":"identree:audit","source":"identree"}\n'
# Codes of the collector that an administrator has to put right; the records are not at fault.
_ADVICE = {
    7: "the token's index is missing or not allowed; put the token's indexes right in Splunk",
    10: "the collector wants a data channel and did not see ours; does a proxy remove X-Splunk-Request-Channel?",
    11: "the collector does not take our data channel; does a proxy change X-Splunk-Request-Channel?",
    14: "indexer acknowledgement is off for this token, though something asks for it; put the token right in Splunk",
}
_BAD_REQUEST = 400


class SplunkHEC:
    """
    Implements :class:`identree.sinks.follower.Shipper`.

    :param url: of the collector, used as it is, usually ``https://HOST:8088/services/collector/event``. For
        acknowledgements what follows ``/collector`` is replaced by ``/ack``; in a path without it, the last part is.
    :param channel: a UUID, always the same for a chain: acknowledgements are counted per channel.
    :param form: how a record is written; one that is not JSON goes as a JSON string.
    :param monotonic: seconds; measures the patience with acknowledgements.
    :raise ValueError: the URL is none.
    """

    name = "splunk_hec"
    batch = BATCH
    linger_seconds = LINGER_SECONDS
    settle_seconds = 0.0

    def __init__(
        self,
        url: str,
        token: str,
        *,
        agent: Client,
        trust: ClientTrust | None,
        channel: str,
        form: Format,
        gzip: bool,
        clock: IReactorTime,
        monotonic: Callable[[], float],
        request_seconds: float = REQUEST_SECONDS,
        log: Logger | None = None,
    ) -> None:
        address = parse_address(url)
        self._url = address.origin + address.path + address.query
        self._ack_url = f"{address.origin}{_ack_path(address.path)}?channel={channel}"
        self._form = form
        self._clock = clock
        self._monotonic = monotonic
        self._receiver = Receiver(
            self.name,
            Names(url=URL_SETTING, gzip=GZIP_SETTING, access=f"check {TOKEN_SETTING}"),
            {"Authorization": f"Splunk {token}", "X-Splunk-Request-Channel": channel},
            secrets=(token, *address.secrets),
            agent=agent,
            trust=trust,
            compress=gzip,
            clock=clock,
            request_seconds=request_seconds,
            log=log,
        )
        self.lost: Callable[[], None] = lambda: None

    async def ship(self, records: Sequence[Sealed]) -> None:
        answer = await self._receiver.send(self._url, lambda: map(self._event, records))
        said = _object(answer.body)
        code = said.get("code")
        advice = _advice(said)
        if answer.status == _BAD_REQUEST and advice:
            raise Unavailable(f"{self._receiver.quoted(answer)}; {advice}", answer.retry_after)
        self._receiver.check(answer, records)
        if code not in (None, 0):
            raise Unavailable(f"{self._receiver.quoted(answer)}; its code is not 0, so it has not taken the records")
        if said.get("ackId") is not None:
            await self._acknowledged(said["ackId"])
        self._receiver.taken(records)

    async def close(self) -> None:
        await self._receiver.close()

    def _event(self, record: Sealed) -> bytes:
        text = self._form.text(record)
        if not self._form.is_json:
            text = json.dumps(text.decode(errors="replace"), ensure_ascii=False).encode()
        return _HEAD + text + _TAIL

    # -- acknowledgements ---------------------------------------------------------------------------------------------
    async def _acknowledged(self, number: object) -> None:
        """:raise Unavailable: it was not acknowledged in time, or cannot be."""
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 63:
            raise Unavailable("it answered with an acknowledgement id that is no number")
        question = b'{"acks":[%d]}' % number
        end = self._monotonic() + ACK_PATIENCE_SECONDS
        wait, trouble = FIRST_ACK_SECONDS, ""
        while self._monotonic() < end:
            await deferLater(self._clock, wait)
            wait = min(wait * 2, LONGEST_ACK_SECONDS)
            try:
                answer = await self._receiver.post(self._ack_url, question)
            except Unavailable as e:
                # the batch may be indexed all the same, so the question is worth repeating
                trouble = f": {e}"
                continue
            if answer.good and not answer.is_page:
                trouble = ""
                if _is_acknowledged(answer, number):
                    return
            elif 400 <= answer.status < 500 and answer.status not in (408, 425, 429):
                raise self._no_acknowledgement(answer)
            else:
                trouble = f": {self._receiver.unavailable(answer)}"
        raise Unavailable(
            f"the indexer has not acknowledged the records within {ACK_PATIENCE_SECONDS:g} s{trouble}; they are sent "
            "again"
        )

    def _no_acknowledgement(self, answer: Answer) -> Unavailable:
        return Unavailable(
            f"asked for an acknowledgement, {self._receiver.quoted(answer)}; "
            + (
                _advice(_object(answer.body))
                or "its acknowledgement endpoint must be reachable, or acknowledgement off for this token"
            ),
            answer.retry_after,
        )


def _ack_path(path: str) -> str:
    parts = path.rstrip("/").split("/")
    name = _COLLECTOR.removeprefix("/")
    if name in parts:
        end = len(parts) - parts[::-1].index(name)
        return "/".join([*parts[:end], "ack"])
    return "/".join([*parts[:-1], "ack"]) if len(parts) > 1 else "/ack"


def _is_acknowledged(answer: Answer, number: int) -> bool:
    acks = _object(answer.body).get("acks")
    return isinstance(acks, dict) and acks.get(str(number)) is True


def _advice(said: dict[str, Any]) -> str:
    code = said.get("code")
    return _ADVICE.get(code, "") if isinstance(code, int) else ""


def _object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body holds, or none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
