"""Which escrow back end the settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from identree.app.escrow import Ciphertexts, EscrowBackend
from identree.clients.escrow.bitwarden import BitwardenBackend
from identree.clients.escrow.command import CommandBackend
from identree.clients.escrow.infisical import InfisicalBackend
from identree.clients.escrow.local import LocalBackend, SealingKey
from identree.clients.escrow.onepassword import OnePasswordBackend
from identree.clients.escrow.vault import VaultBackend
from identree.core.escrow import BACKENDS
from identree.settings.values import Settings


def build_backend(
    settings: Settings,
    *,
    http: Any,
    reactor: Any,
    monotonic: Callable[[], float],
    random_bytes: Callable[[int], bytes],
    ciphertexts: Ciphertexts,
    environment: Mapping[str, str],
    vault_namespace: str = "",
) -> EscrowBackend | None:
    """
    Cheap, and starts nothing: to be called again when a setting has changed. What was under way goes on with the back
    end that it has begun with.

    :param http: anything with treq's ``request``; it follows no redirect and asks no proxy.
    :param reactor: an ``IReactorTime``, and an ``IReactorProcess`` for commands.
    :param random_bytes: as ``secrets.token_bytes``.
    :param environment: of this process; commands get a part of it.
    :returns: None: passwords are not escrowed.
    :raise ValueError: a setting is missing or cannot be used; says which one and what to do. Has no secrets in it.
    """
    backend = settings.escrow_backend
    if settings.escrow_command:
        if backend:
            raise ValueError("IDENTREE_ESCROW_COMMAND is given, and IDENTREE_ESCROW_BACKEND too; keep one of the two")
        return CommandBackend(
            reactor=reactor,
            command=settings.escrow_command,
            prefixes=settings.escrow_command_env,
            environment=environment,
        )
    if not backend:
        return None
    if backend == "local":
        try:
            key = SealingKey.derived(settings.escrow_encryption_key, settings.escrow_hkdf_salt)
        except ValueError as problem:
            raise ValueError(f"IDENTREE_ESCROW_ENCRYPTION_KEY, IDENTREE_ESCROW_HKDF_SALT: {problem}") from None
        return LocalBackend(key, ciphertexts, random_bytes)
    where: dict[str, Any] = {
        "http": http,
        "clock": reactor,
        "url": settings.escrow_url,
        "auth_secret": settings.escrow_auth_secret,
        "path": settings.escrow_path,
        "vault_map": settings.escrow_vault_map,
    }
    if backend == "1password-connect":
        return OnePasswordBackend(**where)
    lent = {**where, "monotonic": monotonic, "auth_id": settings.escrow_auth_id}
    if backend == "vault":
        return VaultBackend(**lent, namespace=vault_namespace)
    if backend == "bitwarden":
        return BitwardenBackend(**lent, random_bytes=random_bytes)
    if backend == "infisical":
        return InfisicalBackend(**lent)
    raise ValueError(f"IDENTREE_ESCROW_BACKEND: {backend!r} is none of {', '.join(BACKENDS)}")
