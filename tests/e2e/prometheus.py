"""A real Prometheus (the Debian package) that scrapes one server and evaluates the rules of the repository."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from tests.e2e.server import DYING_WITH_US, REPOSITORY, free_port

RULES = REPOSITORY / "deploy" / "prometheus" / "alerts.yml"
JOB = "identree"
SCRAPE_SECONDS = 1.0
START_SECONDS = 60.0


class Refused(Exception):
    """Prometheus will not take a query; the text says why."""


class Prometheus:
    """
    :param target: ``host:port`` of the server.
    :param token: of its metrics.
    :param ca: the certificate that its TLS is checked against; None: plain HTTP.
    :param server_name: the name in its certificate.
    """

    def __init__(
        self,
        directory: Path,
        target: str,
        token: str,
        ca: Path | None = None,
        server_name: str = "",
        rules: Path = RULES,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._log = directory / "prometheus.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        credentials = directory / "token"
        credentials.touch(mode=0o600)
        credentials.write_text(token)
        scrape: dict[str, object] = {
            "job_name": JOB,
            "scheme": "https" if ca else "http",
            "authorization": {"credentials_file": str(credentials)},
            "static_configs": [{"targets": [target]}],
        }
        if ca:
            scrape["tls_config"] = {"ca_file": str(ca), "server_name": server_name}
        interval = f"{SCRAPE_SECONDS:g}s"
        configuration = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
            "rule_files": [str(RULES)],
            "scrape_configs": [scrape],
        }
        # JSON is YAML
        self._configuration = directory / "prometheus.yml"
        self._configuration.write_text(json.dumps(configuration, indent=1))

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it and wait until it answers."""
        command: Sequence[str] = (
            *DYING_WITH_US,
            "prometheus",
            f"--config.file={self._configuration}",
            f"--storage.tsdb.path={self._directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        )
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + START_SECONDS
        while not self._ready():
            if self.process.poll() is not None:
                raise AssertionError(f"Prometheus ended with status {self.process.returncode}:\n{self.log}")
            if time.monotonic() > end:
                self.stop()
                raise AssertionError(f"Prometheus did not answer within {START_SECONDS} s:\n{self.log}")
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def stop(self) -> None:
        process, self.process = self.process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Prometheus:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- asking -------------------------------------------------------------------------------------------------------
    def ask(self, path: str, **parameters: object) -> Any:
        """
        ``data`` of an answer of ``/api/v1``.

        :raise Refused: it is an error.
        """
        url = f"{self.url}/api/v1/{path}?{urlencode({name: str(value) for name, value in parameters.items()})}"
        try:
            with urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except HTTPError as e:
            raise Refused(e.read().decode("utf-8", "replace")) from e

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series as of now: ``metric`` and ``value`` of each."""
        found: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return found

    def range(self, expr: str, start: float, end: float, step: float = SCRAPE_SECONDS) -> list[dict[str, Any]]:
        """
        The series between two times (unix seconds): ``metric`` and ``values`` of each.
        """
        found: list[dict[str, Any]] = self.ask("query_range", query=expr, start=start, end=end, step=step)["result"]
        return found

    def rules(self) -> list[dict[str, Any]]:
        """All alerts with ``name``, ``query``, ``state``, ``health`` and ``lastError``."""
        return [rule for group in self.ask("rules")["groups"] for rule in group["rules"]]
