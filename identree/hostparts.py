"""
What the server does for hosts beside challenges, break-glass escrow and the fleet, built from the settings. A part of
the composition root.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from twisted.logger import Logger

from identree import __version__, dist
from identree.agent import units
from identree.app.breakglass import BreakGlass
from identree.app.deploys import Deploys, Parts
from identree.app.distribution import AGENT_NAMES, AgentFile, InstallTerms, Scripts, uninstall_script
from identree.app.escrow import EscrowBackend
from identree.app.fleet import Fleet
from identree.app.hosts import Hosts
from identree.app.people import Caller
from identree.app.registry import By, LiveRegistry, Registrar
from identree.app.rules import Rules
from identree.app.signing import CannotMakeKey, InstallKeys, load_or_create
from identree.clients.escrow.build import build_backend
from identree.clients.http import build_http_client
from identree.clients.sshdeploy import SshClient
from identree.core import tokens
from identree.core.deploy import Access
from identree.core.escrow import place_of, web_link
from identree.core.policy import Policies
from identree.directoryparts import Surroundings
from identree.settings.registry import SETTINGS
from identree.settings.values import Settings
from identree.storage.interface import EscrowRecord
from identree.web.deploy import DeployDesk, KeyHolder
from identree.web.downloads import DownloadDesk
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
    policies: Callable[[], Policies] = Policies.empty,
) -> HostParts:
    """
    :param policies: what approvals need, as it is now.
    :raise ValueError: the escrow settings are of no use; the text says which and why.
    """
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
        policies=policies,
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


def build_downloads(around: Surroundings) -> DownloadDesk:
    """:raise ValueError: a key file of the install scripts cannot be used; the text says which and why."""
    settings = around.settings
    # beside the server's program, where deployed servers have theirs
    agent = settings.agent_file or str(Path(sys.argv[0]).resolve().parent / AGENT_NAMES[0])
    return DownloadDesk(
        scripts=Scripts(
            builtin=dist.read(dist.INSTALL),
            keys=_install_keys(settings),
            directory=os.path.dirname(settings.install_signing_key) or ".",
            store=around.store,
            now=around.now,
            journal=around.journal,
            in_thread=around.in_thread,
        ),
        agent=AgentFile(agent, around.in_thread),
        terms=InstallTerms(
            server_url=settings.external_url,
            install_url=settings.install_url,
            base_dn=settings.ldap_base_dn if settings.ldap_enabled else "",
        ),
        version=__version__,
        units={name: units.unit(name) for name in units.NAMES},
        uninstall=dist.read(dist.UNINSTALL).decode("ascii"),
        registry=around.registry,
    )


def _install_keys(settings: Settings) -> InstallKeys | None:
    """None: there are none, and none can be made."""
    try:
        return load_or_create(settings.install_signing_key, settings.install_verify_key)
    except CannotMakeKey as problem:
        Logger(namespace="identree").warn("{problem}", problem=str(problem))
        return None


def build_deploys(
    around: Surroundings,
    *,
    fleet: HostParts,
    downloads: DownloadDesk,
    registry: LiveRegistry,
    key_holders: Callable[[], Sequence[KeyHolder]],
) -> DeployDesk:
    """Installing and removing over SSH; its ``deploys`` is a service."""
    settings, store = around.settings, around.store
    registrar = Registrar(store=store, registry=registry, now=around.now, token=secrets.token_hex)

    def server_url() -> str:
        return settings.install_url or settings.external_url

    async def install_script() -> bytes:
        return (await downloads.scripts.current()).content

    async def uninstall(pam: bool, files: bool) -> bytes:
        return uninstall_script(downloads.uninstall, pam=pam, files=files).encode("ascii")

    async def access(caller: Caller, hostname: str, address: str) -> Access:
        """Where hosts have secrets of their own, a token that is good for one; else the one that all have."""
        if registry().enabled:
            by = By(name=caller.username, reason="deploy over SSH", remote_addr=address)
            return Access(token=(await registrar.enrolment_token(hostname, by, again=True))[1])
        return Access(secret=settings.shared_secret)

    async def remove_host(caller: Caller, hostname: str, address: str) -> None:
        await fleet.desk.fleet.remove(caller, hostname, address=address)

    async def holders() -> Sequence[KeyHolder]:
        return key_holders()

    deploys = Deploys(
        ssh=SshClient(around.reactor, around.in_thread),
        records=store.deploying(),
        parts=Parts(
            server_url=server_url,
            install_script=install_script,
            uninstall_script=uninstall,
            access=access,
            remove_host=remove_host,
            secrets=lambda: _secrets(settings),
        ),
        clock=around.clock,
        monotonic=around.monotonic,
        now=around.now,
        token=secrets.token_hex,
        journal=around.journal,
        recording=lambda: store.records,
    )
    return DeployDesk(deploys=deploys, key_holders=holders, server_url=server_url)


def _secrets(settings: Settings) -> list[str]:
    """What must never be seen in what a host prints."""
    return [
        value
        for setting in SETTINGS
        if setting.secret and isinstance(value := getattr(settings, setting.attribute), str) and value
    ]
