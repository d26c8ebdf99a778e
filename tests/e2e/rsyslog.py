"""
rsyslog with a configuration of its own: UDP, and TCP with either framing or TLS with client certificates, on free ports
of loopback. What arrives is in one file per way, message by message as it came.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.server import DYING_WITH_US, free_port

PROGRAM = "/usr/sbin/rsyslogd"
START_SECONDS = 30.0
# Longer than any record; rsyslog would break a longer message in pieces.
MESSAGE_BYTES = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    Of a TLS input.

    :ivar ca: of the client certificates that it demands.
    :ivar peer: the name that they must be for.
    """

    ca: Path
    certificate: Path
    key: Path
    peer: str


class Rsyslog:
    """
    :param directory: an empty one, for everything that it writes.
    :param identity: for a TLS input; None: there are two without TLS.
    """

    def __init__(self, directory: Path, identity: Identity | None = None) -> None:
        self.directory = directory
        self.identity = identity
        self.process: subprocess.Popen[bytes] | None = None
        self.udp, self.newline, self.counted, self.tls = (free_port() for _ in range(4))
        self._log = directory / "rsyslogd.log"

    def start(self) -> None:
        """Returns when it listens."""
        (self.directory / "work").mkdir(exist_ok=True)
        configuration = self.directory / "rsyslog.conf"
        configuration.write_text(self._configuration())
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [*DYING_WITH_US, PROGRAM, "-n", "-i", str(self.directory / "pid"), "-f", str(configuration)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_SECONDS
        ports = [self.tls] if self.identity else [self.newline, self.counted]
        while not all(map(_listens, ports)):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"rsyslogd does not run:\n{self.said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """As on a restart: what it has read, it writes."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """What it had in memory is gone."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It takes nothing any more, and keeps its connections."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def _end(self, how: signal.Signals) -> None:
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def received(self, way: str) -> list[bytes]:
        """:param way: ``udp``, ``newline``, ``counted`` or ``tls``."""
        file = self.directory / f"{way}.log"
        return file.read_bytes().split(b"\n")[:-1] if file.exists() else []

    @property
    def said(self) -> str:
        """What it said about itself."""
        own = self.directory / "own.log"
        text = self._log.read_text("utf-8", "replace")
        return text + (own.read_text("utf-8", "replace") if own.exists() else "")

    def _configuration(self) -> str:
        lines = [
            f'global(workDirectory="{self.directory}/work" maxMessageSize="{MESSAGE_BYTES}"',
            '  parser.escapeControlCharactersOnReceive="off")',
            # the message as it was on the wire, without what told it from the next one
            'template(name="raw" type="string" string="%rawmsg%\\n")',
            'module(load="imudp")',
        ]
        ways = {"udp": f'type="imudp" port="{self.udp}"'}
        tls = self.identity
        if tls is None:
            lines.append('module(load="imtcp")')
            ways["newline"] = f'type="imtcp" port="{self.newline}" supportOctetCountedFraming="off"'
            ways["counted"] = f'type="imtcp" port="{self.counted}" supportOctetCountedFraming="on"'
        else:
            lines += [
                f'global(defaultNetstreamDriverCAFile="{tls.ca}"',
                f'  defaultNetstreamDriverCertFile="{tls.certificate}" defaultNetstreamDriverKeyFile="{tls.key}")',
                # rsyslog looks at permitted peers only where they stand for all inputs, hence no others beside it
                'module(load="imtcp" streamDriver.name="gtls" streamDriver.mode="1" streamDriver.authMode="x509/name"',
                f'  permittedPeer=["{tls.peer}"])',
            ]
            ways["tls"] = f'type="imtcp" port="{self.tls}"'
        for way, how in ways.items():
            lines.append(f'input({how} address="127.0.0.1" ruleset="{way}")')
            action = f'action(type="omfile" file="{self.directory}/{way}.log" template="raw")'
            lines.append(f'ruleset(name="{way}") {{ {action} }}')
        lines.append(f'action(type="omfile" file="{self.directory}/own.log")')
        return "\n".join(lines) + "\n"


def _listens(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
