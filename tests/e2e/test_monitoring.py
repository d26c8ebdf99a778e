"""
Monitoring as an operator has it: a real Prometheus scrapes a real server through a day that is scripted and takes a
minute, with the alerts and the dashboards of the repository.

What Prometheus kept of the day goes to ``build/monitoring.json``, from which ``tools/plot_dashboards.py`` draws.
"""

from __future__ import annotations

import json
import math
import random
import re
import secrets
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import yaml

from identree.core import tokens
from tests.e2e import directory
from tests.e2e.hec import HEC, TOKEN
from tests.e2e.ldaptools import SUB, Client
from tests.e2e.loki import Loki
from tests.e2e.pocketid import PocketIdServer, groupname, username
from tests.e2e.prometheus import RULES, SCRAPE_SECONDS, Prometheus
from tests.e2e.provider import Provider
from tests.e2e.server import REPOSITORY, free_port
from tests.e2e.slapd import BASE_DN, BIND_DN
from tests.e2e.tls import CA, SERVER_NAME, SecureServer
from tests.e2e.wire import KEYS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

METRICS_TOKEN = "e2e-metrics-token-0123456789abcdef"
DAY_SECONDS = 50.0
# What is asked of the server in each of these steps follows the time of day.
STEP_SECONDS = 0.25
USERS, GROUPS, HOSTS = 60, 6, 12
# How long something may take on a busy machine.
PATIENCE_SECONDS = 120.0
KEPT = REPOSITORY / "build" / "monitoring.json"
# For pictures: windows of the queries, in a day that is as short as this one.
COMPRESSED = {"[5m]": "[5s]", "[1h]": f"[{DAY_SECONDS:.0f}s]"}

# What a slow moment of this machine may bring near, but nothing of the script may.
OF_THE_MACHINE = {
    *("IdentreeDown", "IdentreeEventLoopLag", "IdentreeDatabaseSlow", "IdentreeThreadsWaiting"),
    *("IdentreeOidcSlow", "IdentreeAuditBehind", "IdentreeChallengesSlow"),
}


def host(number: int) -> str:
    return f"web-{number:02d}"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def location(self) -> str:
        return next(value for name, value in self.headers if name.lower() == "location")

    @property
    def cookies(self) -> dict[str, str]:
        pairs = (v.partition(";")[0].partition("=") for n, v in self.headers if n.lower() == "set-cookie")
        return {name: value for name, _, value in pairs}


class Site:
    """The server as people reach it, and hosts with the certificates that it gave them."""

    def __init__(self, port: int, place: Path) -> None:
        self._port, self._place = port, place
        self._contexts = {"": ssl._create_unverified_context()}

    def provision(self, hostname: str, secret: str) -> None:
        """The host gets its certificate, and shows it from now on."""
        answer = self.ask("GET", "/api/client/provision", {"X-Shared-Secret": secret, "X-Hostname": hostname})
        assert answer.status == 200, answer
        certificate, key = self._place / f"{hostname}.crt", self._place / f"{hostname}.key"
        certificate.write_text(answer.json["client_cert"])
        key.touch(mode=0o600)
        key.write_text(answer.json["client_key"])
        context = ssl._create_unverified_context()
        context.load_cert_chain(certificate, key)
        self._contexts[hostname] = context

    def connect(self, hostname: str = "") -> HTTPSConnection:
        """:param hostname: of the host that asks; empty: a browser."""
        return HTTPSConnection("127.0.0.1", self._port, timeout=PATIENCE_SECONDS, context=self._contexts[hostname])

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: str | None = None, hostname: str = ""
    ) -> Answer:
        connection = self.connect(hostname)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


class People:
    """Everybody who has signed in, through the identity provider."""

    def __init__(self, site: Site, provider: Provider) -> None:
        self._site, self._provider = site, provider
        self._cookies: dict[str, str] = {}

    def sign_in(self, name: str) -> str:
        """The cookie."""
        if name in self._cookies:
            return self._cookies[name]
        begun = self._site.ask("GET", "/sessions/login", self._from(name))
        assert begun.status == 302, begun
        asked = dict(parse_qsl(urlsplit(begun.location).query))
        back = self._choose({**asked, "user": name})
        login = "; ".join(f"{key}={value}" for key, value in begun.cookies.items())
        done = self._site.ask("GET", f"/callback?{urlsplit(back).query}", {"Cookie": login, **self._from(name)})
        assert done.status == 303, done
        self._cookies[name] = f"pam_session={done.cookies['pam_session']}"
        return self._cookies[name]

    @staticmethod
    def _from(name: str) -> dict[str, str]:
        """Everybody has an address, as behind a proxy: sign-ins of one address are bounded."""
        return {"X-Forwarded-For": f"192.0.2.{zlib.crc32(name.encode()) % 250 + 1}"}

    def headers(self, name: str) -> dict[str, str]:
        return {"Cookie": self.sign_in(name), **self._from(name)}

    def _choose(self, form: dict[str, str]) -> str:
        """At the provider: where it sends the browser."""
        parts = urlsplit(self._provider.issuer)
        connection = HTTPConnection(parts.netloc, timeout=60)
        try:
            kind = {"Content-Type": "application/x-www-form-urlencoded"}
            connection.request("POST", "/authorize", urlencode(form), kind)
            response = connection.getresponse()
            response.read()
            location = response.getheader("Location")
            assert location is not None, response.status
            return location
        finally:
            connection.close()

    def post(self, name: str, path: str, **fields: str) -> Answer:
        """A form of somebody's browser."""
        now = int(time.time())
        form = {"username": name, "csrf_token": tokens.csrf_token(KEYS, name, now), "csrf_ts": str(now), **fields}
        headers = {
            **self.headers(name),
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
        }
        return self._site.ask("POST", path, headers, urlencode(form))


class Day:
    """
    One day of work.

    :ivar counted: how often what was done.
    """

    def __init__(self, site: Site, people: People, ldap: int, loki: Loki) -> None:
        self._site, self._people, self._ldap, self._loki = site, people, ldap, loki
        self._random = random.Random(4)
        self.counted: dict[str, int] = {}
        self._lock = threading.Lock()
        self._streams: list[HTTPSConnection] = []

    def _count(self, what: str, number: int = 1) -> None:
        with self._lock:
            self.counted[what] = self.counted.get(what, 0) + number

    # -- what hosts and people do -------------------------------------------------------------------------------------
    def create(self, name: str, hostname: str) -> Answer:
        body = json.dumps({"username": name, "hostname": hostname, "command": "/usr/bin/apt upgrade"})
        return self._site.ask("POST", "/api/challenge", {"Content-Type": "application/json"}, body, hostname)

    def sudo(self, name: str, hostname: str, decision: str, after: float) -> None:
        """A request, the host that waits for it, and who decides after so many seconds."""
        answer = self.create(name, hostname)
        assert answer.status in (200, 201), answer
        if answer.json.get("status") == "approved":
            self._count("auto-approved")
            return
        challenge = answer.json["challenge_id"]
        path = f"/api/challenge/{challenge}?hostname={hostname}"
        waiting = self._site.connect(hostname)
        try:
            waiting.request("GET", f"{path}&wait=25")
            time.sleep(after)
            if decision == "cancel":
                assert self._site.ask("DELETE", path, {}, None, hostname).status in (200, 204)
            elif decision != "expire":
                done = self._people.post(name, f"/api/challenges/{decision}", challenge_id=challenge)
                assert done.status == 200, done
            waiting.getresponse().read()
        finally:
            waiting.close()
        self._count(decision)

    def flood(self, name: str) -> None:
        """One person asks for more than may wait."""
        made = [self.create(name, host(0)) for _ in range(13)]
        assert [answer.status for answer in made[10:]] == [429] * 3, made
        self._count("rate limited", 3)
        for answer in made[:10]:
            path = f"/api/challenge/{answer.json['challenge_id']}?hostname={host(0)}"
            self._site.ask("DELETE", path, {}, None, host(0))

    def stranger(self) -> None:
        headers = {"Content-Type": "application/json", "X-Shared-Secret": "wrong-" + "x" * 40}
        body = json.dumps({"username": "mallory", "hostname": host(1)})
        assert self._site.ask("POST", "/api/challenge", headers, body).status == 401
        self._count("bad secret")

    def watch(self, name: str) -> None:
        """A live page, open until the end of the day."""
        connection = self._site.connect()
        connection.request("GET", "/api/events", None, self._people.headers(name))
        assert connection.getresponse().status == 200
        self._streams.append(connection)
        self._count("live page")

    def page(self, name: str) -> None:
        assert self._site.ask("GET", "/", self._people.headers(name)).status == 200

    def look_up(self, client: Client, number: int) -> None:
        """What sssd asks."""
        name, group = username(number % USERS), groupname(number % GROUPS)
        client.search(f"ou=people,{BASE_DN}", SUB, ("=", "uid", name.encode()), ["*"])
        client.search(f"ou=groups,{BASE_DN}", SUB, ("=", "cn", group.encode()), ["*"])
        if number % 3 == 0:
            client.search(f"ou=sudoers,{BASE_DN}", SUB, ("*", "objectClass"), ["*"])
        if number % 7 == 0:
            client.search(BASE_DN, 0, ("*", "objectClass"), ["1.1"])

    def wrong_password(self) -> None:
        with Client(self._ldap) as client:
            assert client.bind(BIND_DN, "wrong") == 49
        self._count("failed bind")

    # -- the day ------------------------------------------------------------------------------------------------------
    def live(self) -> None:
        """It begins and ends quietly; something happens at fixed times, the usual as often as people are at work."""
        steps = round(DAY_SECONDS / STEP_SECONDS)
        events = self._plan(steps)
        begin = time.monotonic()
        done: list[Future[None]] = []
        with ThreadPoolExecutor(48) as pool, directory.bound(self._ldap) as sssd:
            for step in range(steps):
                time.sleep(max(0.0, begin + step * STEP_SECONDS - time.monotonic()))
                busy = math.sin(math.pi * step / steps) ** 2
                for what, arguments in events.get(step, ()):
                    done.append(pool.submit(getattr(self, what), *arguments))
                if self._random.random() < 0.15 + busy:
                    done.append(pool.submit(self.sudo, *self._request(step)))
                if self._random.random() < busy:
                    done.append(pool.submit(self.page, username(self._random.randrange(5))))
                for n in range(1 + round(5 * busy)):
                    self.look_up(sssd, step * 7 + n)
            for future in done:
                future.result(PATIENCE_SECONDS)
        self._loki.heal()
        for connection in self._streams:
            connection.close()

    def _request(self, step: int) -> tuple[str, str, str, float]:
        name = username(self._random.randrange(USERS - 1))
        after = min(9.0, 0.2 + self._random.expovariate(0.7))
        decision = "approve" if step % 10 else "cancel"
        return name, host(self._random.randrange(HOSTS)), decision, after

    def _plan(self, steps: int) -> dict[int, list[tuple[str, tuple[Any, ...]]]]:
        """By step; shares of the day are easier to read."""
        plan: list[tuple[float, str, tuple[Any, ...]]] = [
            *((0.02 + 0.01 * n, "watch", (username(n),)) for n in range(5)),
            # in time to expire within the day, half a minute later
            *((0.06 + 0.02 * n, "sudo", (username(USERS - 1), host(n), "expire", 1.0)) for n in range(3)),
            *((0.2 + 0.09 * n, "sudo", (username(10 + n), host(n), "reject", 1.0)) for n in range(6)),
            *((0.3 + 0.06 * n, "stranger", ()) for n in range(5)),
            *((0.4 + 0.15 * n, "wrong_password", ()) for n in range(3)),
            (0.55, "flood", ("flood",)),
            # the receiver takes its time for a while: nothing fails, and everything arrives
            (0.45, "slow_receiver", (1.5,)),
            (0.65, "slow_receiver", (0.0,)),
        ]
        by_step: dict[int, list[tuple[str, tuple[Any, ...]]]] = {}
        for share, what, arguments in plan:
            by_step.setdefault(round(share * steps), []).append((what, arguments))
        return by_step

    def slow_receiver(self, seconds: float) -> None:
        if seconds:
            self._loki.fail("slow", seconds=seconds)
        else:
            self._loki.heal()


@dataclass(frozen=True)
class Monitored:
    """
    A day that is over.

    :ivar start, end: unix seconds.
    :ivar scrape: the text of the last scrape.
    """

    prometheus: Prometheus
    day: Day
    loki: Loki
    start: float
    end: float
    scrape: str


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    place = tmp_path_factory.mktemp("monitoring")
    ca = CA(place / "ca")
    tls = ca.settings()
    # in the same files, one that does not end soon
    ca.issue(SERVER_NAME, days=365)
    port, ldap, ldaps = free_port(), free_port(), free_port()
    host_secrets = {host(n): secrets.token_hex(32) for n in range(HOSTS)}
    registry = place / "hosts.json"
    registry.touch(mode=0o600)
    registry.write_text(json.dumps({name: {"secret": secret, "users": ["*"]} for name, secret in host_secrets.items()}))
    users = {username(n): ["users"] for n in range(USERS)} | {"flood": ["users"]}
    with ExitStack() as stack:
        provider = stack.enter_context(Provider(free_port(), [f"https://127.0.0.1:{port}/callback"], users))
        pocketid = stack.enter_context(PocketIdServer(USERS, GROUPS, 3))
        loki, hec = stack.enter_context(Loki()), stack.enter_context(HEC(ack=True))
        syslog = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        syslog.bind(("127.0.0.1", 0))
        settings = {
            **provider.settings,
            **directory.settings(place, pocketid, ldap),
            **tls,
            "IDENTREE_EXTERNAL_URL": f"https://127.0.0.1:{port}",
            "IDENTREE_LDAP_TLS_LISTEN_ADDR": f"127.0.0.1:{ldaps}",
            "IDENTREE_LDAP_REFRESH_INTERVAL": "10s",
            "IDENTREE_LDAP_PROVISION_ENABLED": "true",
            "IDENTREE_METRICS_TOKEN": METRICS_TOKEN,
            "IDENTREE_HOST_REGISTRY_FILE": str(registry),
            "IDENTREE_CHALLENGE_TTL": "30s",
            "IDENTREE_GRACE_PERIOD": "1h",
            "IDENTREE_AUDIT_SYSLOG_URL": f"udp://127.0.0.1:{syslog.getsockname()[1]}",
            "IDENTREE_AUDIT_SPLUNK_HEC_URL": hec.url,
            "IDENTREE_AUDIT_SPLUNK_TOKEN": TOKEN,
            "IDENTREE_AUDIT_LOKI_URL": loki.url,
            "IDENTREE_AUDIT_SIGNING_KEY": str(place / "audit-signing.key"),
            "IDENTREE_AUDIT_VERIFY_KEY": str(place / "audit-signing.pub"),
        }
        server = stack.enter_context(SecureServer(place, settings, port))
        directory.until(lambda: directory.served(ldap, f"uid={username(1)}"), "the directory")
        site = Site(port, place)
        for name, secret in host_secrets.items():
            site.provision(name, secret)
        prometheus = stack.enter_context(
            Prometheus(place / "prometheus", f"127.0.0.1:{port}", METRICS_TOKEN, ca.certificate, SERVER_NAME)
        )
        directory.until(lambda: bool(prometheus.query('up{job="identree"} == 1')), "the first scrape")
        # that nobody was scraped yet was noticed, too
        directory.until(lambda: not prometheus.query("ALERTS"), "the rules")
        start = time.time()
        day = Day(site, People(site, provider), ldap, loki)
        day.live()
        # expired requests are swept up every ten seconds, and the last counts come with the next two scrapes
        expired = f"identree_challenges_expired_total == {day.counted['expire']}"
        directory.until(lambda: bool(prometheus.query(expired)), "the sweep", PATIENCE_SECONDS)
        time.sleep(2 * SCRAPE_SECONDS)
        scrape = site.ask("GET", "/metrics", {"Authorization": f"Bearer {METRICS_TOKEN}"})
        assert scrape.status == 200
        end = time.time()
        keep(prometheus, start, end)
        yield Monitored(prometheus, day, loki, start, end, scrape.body.decode())
        assert "Traceback" not in server.log, server.log


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Dashboard, panel and query of every query, from the files as they are imported."""
    found = []
    for path in sorted((REPOSITORY / "deploy" / "grafana").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            found += [(dashboard["uid"], panel, target) for target in panel.get("targets", ())]
    return found


def keep(prometheus: Prometheus, start: float, end: float) -> None:
    """The day's curves, for those who draw the documentation's pictures."""
    kept: dict[str, Any] = {"start": start, "end": end, "panels": {}}
    for uid, panel, target in panels():
        expr = target["expr"]
        for window, short in COMPRESSED.items():
            expr = expr.replace(window, short)
        series = prometheus.range(expr, start, end)
        kept["panels"].setdefault(uid, {}).setdefault(str(panel["id"]), {})[target["refId"]] = series
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(kept))


class TestDay:
    def test_what_happened(self, here: Monitored) -> None:
        """The script did what it says, and the metrics counted all of it."""
        did = here.day.counted
        for metric, expected in {
            "identree_challenges_approved_total": did["approve"],
            "identree_challenges_auto_approved_total": did["auto-approved"],
            'identree_challenges_denied_total{reason="user_rejected"}': did["reject"],
            "identree_challenges_expired_total": did["expire"],
            "identree_rate_limit_rejections_total": did["rate limited"],
            "identree_auth_failures_total": did["bad secret"],
            "identree_ldap_bind_failures_total": did["failed bind"],
            "identree_registered_hosts": HOSTS,
        }.items():
            assert expected > 0, metric
            found = re.search(rf"^{re.escape(metric)} (\S+)$", here.scrape, re.MULTILINE)
            assert found is not None, metric
            assert float(found[1]) == expected, metric

    def test_lint(self, here: Monitored) -> None:
        """promtool reads the scrape and has nothing to say against any name, type or text."""
        done = subprocess.run(
            ["promtool", "check", "metrics"], input=here.scrape, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_every_series_is_described(self, here: Monitored) -> None:
        """Each metric of the scrape is in the operators' reference."""
        text = (REPOSITORY / "docs" / "operations.md").read_text()
        for name in re.findall(r"^# TYPE (\S+) ", here.scrape, re.MULTILINE):
            assert f"`{name}`" in text, name


class TestDashboards:
    def test_every_query_is_answered(self, here: Monitored) -> None:
        """Prometheus takes every query of every panel, and has at least one series for it within the day."""
        empty = []
        for uid, panel, target in panels():
            series = here.prometheus.range(target["expr"], here.start, here.end)
            if not any(series):
                empty.append(f"{uid}, panel {panel['id']} ({panel['title']}): {target['expr']}")
        assert empty == []

    def test_legends(self, here: Monitored) -> None:
        """Every label that a legend names is on its series: no curve is called after a label that is not there."""
        for uid, panel, target in panels():
            wanted = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            for series in here.prometheus.range(target["expr"], here.start, here.end):
                assert wanted <= set(series["metric"]), (uid, panel["title"], series["metric"])


class TestAlerts:
    def test_every_rule_is_evaluated(self, here: Monitored) -> None:
        """Prometheus loaded every alert of the file and evaluates it without an error."""
        rules = here.prometheus.rules()
        assert sorted(rule["name"] for rule in rules) == sorted(rule["alert"] for rule in alerts())
        assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
        assert {rule["health"] for rule in rules} == {"ok"}

    def test_every_expression_finds_its_metrics(self, here: Monitored) -> None:
        """What an alert compares is there: a misspelled name would be silent for ever."""
        names = {name for rule in alerts() for name in re.findall(r"\b(?:identree|process)_\w+|\bup\b", rule["expr"])}
        # a healthy day has no answer 500, and so no such series; its name is there
        missing = [name for name in sorted(names) if not here.prometheus.query(name)]
        assert missing == []

    def test_healthy_day(self, here: Monitored) -> None:
        """Nothing fires on a healthy day, at no moment of it, and nothing but this machine's slowness comes near."""
        fired = here.prometheus.range('ALERTS{alertstate="firing"}', here.start, here.end)
        assert [series["metric"]["alertname"] for series in fired] == []
        near = here.prometheus.range('ALERTS{alertstate="pending"}', here.start, here.end)
        assert {series["metric"]["alertname"] for series in near} <= OF_THE_MACHINE

    def test_receiver_goes_away(self, here: Monitored) -> None:
        """Last of all: a sink whose receiver is gone makes its alert fire, and no other sink's."""
        here.loki.stop()
        here.day.create(username(1), host(2))
        firing = 'ALERTS{alertname="IdentreeAuditFailed",alertstate="firing"}'
        directory.until(lambda: bool(here.prometheus.query(firing)), "the alert", PATIENCE_SECONDS, 0.5)
        assert {series["metric"]["sink"] for series in here.prometheus.query(firing)} == {"loki"}
