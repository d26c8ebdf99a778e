"""Provisioning on the application of ``tests.app.world``: what tests of the rules and of the endpoint stand on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twisted.internet.defer import Deferred, execute

from identree.app.authority import Authority, CAFiles
from identree.app.hosts import Credential, Hosts
from identree.app.provision import Certificates, Provisioned, Provisioning, Terms
from identree.core.hosts import HostRegistry
from identree.core.limits import FailureThrottle
from tests.app.world import GLOBAL, SECRET, World, now_result

ADDRESS = "192.0.2.7"
WEB1 = Credential(secret=b"f" * 64)
WEB2 = Credential(secret=b"e" * 64)
TERMS = Terms(enabled=True, url="ldaps://identree.example:636", base_dn="dc=example,dc=com", secret=SECRET.encode())


def registry(*names: str) -> HostRegistry:
    entries = {name: {"secret": letter * 64, "users": ["*"]} for name, letter in zip(names, "fedcba", strict=False)}
    return HostRegistry.parse(json.dumps(entries).encode())


def inline(function: Callable[[], Any]) -> Deferred[Any]:
    return execute(function)


class Workshop:
    """:ivar authority: None without mTLS."""

    def __init__(self, *, mtls: bool = True, add_cleanup: Callable[..., Any], **terms: Any) -> None:
        self.world = world = World()
        self.terms = replace(TERMS, **terms)
        directory = TemporaryDirectory()
        add_cleanup(directory.cleanup)
        path = Path(directory.name)
        self.serials = iter(range(0xA1, 0xFFFF))
        self.authority: Authority | None = None
        if mtls:
            self.authority = Authority(
                CAFiles(
                    str(path / "ca.crt"), str(path / "ca.key"), now=world.now, random_bits=lambda bits: 1 << (bits - 1)
                ),
                lifetime=timedelta(days=365),
                now=world.now,
                below=lambda n: 0,
                random_bits=lambda bits: next(self.serials),
                in_thread=inline,
            )
        throttle = FailureThrottle()
        self.hosts = Hosts(
            shared_secret=SECRET.encode(),
            registry=lambda: world.registry,
            throttle=throttle,
            monotonic=world.clock.seconds,
            journal=world.journal,
            metrics=world.metrics,
            trail=world.trail,
        )
        self.certificates = Certificates(
            store=world.store,
            authority=self.authority,
            registry=lambda: world.registry,
            now=world.now,
            metrics=world.metrics,
        )
        self.provisioning = Provisioning(
            terms=lambda: self.terms,
            hosts=self.hosts,
            registry=lambda: world.registry,
            throttle=throttle,
            authority=self.authority,
            store=world.store,
            certificates=self.certificates,
            now=world.now,
            monotonic=world.clock.seconds,
            journal=world.journal,
            metrics=world.metrics,
        )

    def register(self, *names: str) -> None:
        self.world.registry = registry(*names)

    def provision(self, hostname: str = "web1", presented: Credential = GLOBAL) -> Provisioned:
        return now_result(self.provisioning.provision(presented, hostname, ADDRESS))
