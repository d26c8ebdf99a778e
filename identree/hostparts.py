"""
What the server does for hosts beside challenges, break-glass escrow and the fleet, built from the settings. A part of
the composition root.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from twisted.logger import Logger

from identree.app.breakglass import BreakGlass
from identree.app.escrow import EscrowBackend
from identree.app.fleet import Fleet
from identree.app.hosts import Hosts
from identree.app.registry import LiveRegistry
from identree.app.rules import Rules
from identree.clients.escrow.build import build_backend
from identree.clients.http import build_http_client
from identree.core import tokens
from identree.core.escrow import place_of, web_link
from identree.directoryparts import Surroundings
from identree.settings.values import Settings
from identree.storage.interface import EscrowRecord
from identree.web.fleet import FleetDesk

# How often tokens of the escrow back end are looked after.
KEEP_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostParts:
    """:ivar backend: where break-glass passwords go; None: nowhere."""

    desk: FleetDesk
    break_glass: BreakGlass
    backend: EscrowBackend | None

    async def keep(self) -> None:
        """Have the back end's login last."""
        if self.backend is not None:
            await self.backend.keep()


def build_hosts(
    around: Surroundings,
    *,
    hosts: Hosts,
    registry: LiveRegistry,
    keys: tokens.Keys,
    rules: Callable[[], Rules],
    disabled: Callable[[str], bool],
) -> HostParts:
    """:raise ValueError: the escrow settings are of no use; the text says which and why."""
    settings = around.settings
    backend = build_backend(
        settings,
        http=build_http_client(around.reactor),
        reactor=around.reactor,
        monotonic=around.monotonic,
        random_bytes=secrets.token_bytes,
        ciphertexts=around.store,
        environment=os.environ,
        vault_namespace=settings.escrow_namespace,
    )
    break_glass = BreakGlass(
        store=around.store,
        hosts=hosts,
        registry=registry,
        escrow=lambda: backend,
        secrets=(settings.escrow_secret.encode(), settings.shared_secret.encode()),
        has_shared_secret=bool(settings.shared_secret),
        rotate_after_reveal=lambda: settings.escrow_rotate_after_reveal,
        rules=rules,
        now=around.now,
        journal=around.journal,
        metrics=around.metrics,
    )
    fleet = Fleet(
        store=around.store,
        hosts=hosts,
        registry=registry,
        follow=registry.refresh,
        keys=keys,
        rules=rules,
        link=lambda record: _link(settings, record),
        disabled=disabled,
        in_thread=around.in_thread,
        now=around.now,
        journal=around.journal,
    )
    if backend is not None:
        Logger(namespace="identree").info("break-glass passwords are escrowed: {name}", name=backend.name)
    return HostParts(desk=FleetDesk(fleet=fleet, break_glass=break_glass), break_glass=break_glass, backend=backend)


def _link(settings: Settings, record: EscrowRecord) -> str:
    """Where a person finds the password in the back end's own pages; empty: nowhere."""
    return web_link(
        settings.escrow_backend,
        url=settings.escrow_url,
        web_url=settings.escrow_web_url,
        place=place_of(record.hostname, settings.escrow_vault_map, settings.escrow_path),
        hostname=record.hostname,
        item_id=record.item_id,
        vault_id=record.vault_id,
    )
