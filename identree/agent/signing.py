"""
``verify-install`` and ``sign-script`` (spec/host-agent section 16): whether the install script is the one that somebody
signed, and signing it.
"""

from __future__ import annotations

import binascii
import errno
import os
import stat

from identree.agent import ed25519
from identree.agent.text import clean, note

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

VERIFY_USAGE = """\
usage: identree verify-install --key PUBLIC --script SCRIPT --sig SIGNATURE

Say whether SCRIPT is what the owner of the key has signed. Run it before the script, never after.

  --key PUBLIC     the public key in PEM form, which did not come from the server that the script came from
  --script SCRIPT  the script as it was downloaded
  --sig SIGNATURE  the signature beside it (SCRIPT.sig)"""

SIGN_USAGE = """\
usage: identree sign-script --key PRIVATE --script SCRIPT
       identree sign-script --generate-key [--key PRIVATE] [--script SCRIPT]

Sign SCRIPT into SCRIPT.sig. Run it where the private key is, which is not the server.

  --key PRIVATE    the private key in PEM form
  --script SCRIPT  the script to sign
  --generate-key   make a pair first: install-signing.key and install-signing.pub, or PRIVATE and PRIVATE with .pub"""

DEFAULT_KEY = "install-signing.key"

# The server takes scripts of 1 MiB.
MAX_SCRIPT_BYTES = 16 << 20
MAX_SIGNATURE_BYTES = 1024


class SigningError(Exception):
    """The text says which file, and what is wrong with it."""


def verify_install(arguments: list[str]) -> int:
    """0 when the signature is good, else 1."""
    from identree.agent.main import complain

    if arguments in (["--help"], ["-h"]):
        note(VERIFY_USAGE)
        return 0
    options = _values(arguments, ("--key", "--script", "--sig"))  # of others nothing is known, and nothing is said
    if not all(options.get(name) for name in ("--key", "--script", "--sig")):
        complain(VERIFY_USAGE)
        return 1
    script = options["--script"]
    try:
        key = _key(options["--key"], ed25519.public_key)
        signature = _signature(options["--sig"])
        data = _read(script, MAX_SCRIPT_BYTES)
    except SigningError as e:
        complain(f"identree verify-install: {e}")
        return 1
    if not ed25519.verify(key, data, signature):
        complain(f"WARNING: {clean(script, 300)} is NOT what the owner of this key has signed.")
        complain("Do not run it: it was changed, or signed with another key. Fetch it again, and ask who signs it.")
        return 1
    note(f"OK: {clean(script, 300)} is what the owner of this key has signed")
    return 0


def sign_script(arguments: list[str], *, signer: Callable[[], ed25519.Signer] = ed25519.Signer) -> int:
    """0 when all that was asked for is written."""
    from identree.agent.main import complain

    if arguments in (["--help"], ["-h"]):
        note(SIGN_USAGE)
        return 0
    options = _values(arguments, ("--key", "--script"))
    generate, script = "--generate-key" in arguments, options.get("--script", "")
    path = options.get("--key", "") or (DEFAULT_KEY if generate else "")
    if not path or not (script or generate):
        complain(SIGN_USAGE)
        return 1
    try:
        # all that can be wrong is found before anything is written
        data = _read(script, MAX_SCRIPT_BYTES) if script else b""
        hand = signer()
        if generate:
            seed = _generate(path, hand, complain)
        else:
            seed = _key(path, ed25519.private_key)
            _warn_if_open(path, complain)
        if script:
            text = binascii.b2a_base64(hand.sign(seed, data), newline=False).decode().rstrip("=")
            _replace(f"{script}.sig", text + "\n")
            complain(f"signed; the signature is in {clean(script, 300)}.sig")
            note(text)
    except (SigningError, ed25519.CannotSign) as e:
        complain(f"identree sign-script: {e}")
        return 1
    except OSError as e:
        complain(f"identree sign-script: {e.filename or script}: {e.strerror}")
        return 1
    return 0


def _values(arguments: list[str], names: tuple[str, ...]) -> dict[str, str]:
    """The named options with their values; the last of each counts."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if name in names:
            found[name] = value if equals else rest.pop(0) if rest else ""
    return found


def _generate(path: str, hand: ed25519.Signer, complain: Callable[[str], None]) -> bytes:
    """A new pair in two files; what is there already is never overwritten."""
    public_path = (path[:-4] if path.endswith(".key") else path) + ".pub"
    for each in (path, public_path):
        if os.path.lexists(each):
            raise SigningError(f"{each} exists, and a key is never overwritten; move it away, or give another --key")
    seed = os.urandom(ed25519.SEED_BYTES)
    public = hand.public(seed)
    _create(path, ed25519.pem(ed25519.OWN_PRIVATE, seed), 0o600)
    try:
        _create(public_path, ed25519.pem(ed25519.OWN_PUBLIC, public), 0o644)
    except OSError:
        os.unlink(path)  # half a pair
        raise
    complain(f"{path}: the private key; keep it away from the server, and keep a copy")
    complain(f"{public_path}: the public key; hosts need it before they fetch the script")
    return seed


def _key(path: str, parse: Callable[[str], bytes]) -> bytes:
    text = _read(path, ed25519.MAX_PEM_BYTES).decode("ascii", "replace")
    try:
        return parse(text)
    except ed25519.KeyProblem as e:
        raise SigningError(f"{path} cannot be used: {e}") from None


def _signature(path: str) -> bytes:
    text = _read(path, MAX_SIGNATURE_BYTES).decode("ascii", "replace").strip()
    try:
        signature = ed25519.decode_base64(text)
    except ValueError:
        signature = b""
    if len(signature) != ed25519.SIGNATURE_BYTES:
        raise SigningError(f"{path} holds no signature; it must be 86 characters of base64")
    return signature


def _read(path: str, limit: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as e:
        raise SigningError(f"{path} cannot be read: {os.strerror(e.errno or 0)}") from None
    if len(data) > limit:
        raise SigningError(f"{path} is larger than {limit} bytes")
    return data


def _warn_if_open(path: str, complain: Callable[[str], None]) -> None:
    if os.stat(path).st_mode & 0o077:
        complain(f"identree sign-script: warning: {path} can be read by others; run: chmod 600 {path}")


def _create(path: str, text: str, mode: int) -> None:
    """A new file, on the disk when this returns. :raise OSError: it is there, or cannot be written; then it is not."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            data = text.encode()
            while data:
                data = data[os.write(fd, data) :]
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        os.unlink(path)
        raise


def _replace(path: str, text: str) -> None:
    """In one step, so that no reader meets half a signature."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "is no regular file", path)
    except FileNotFoundError:
        pass
    temporary = f"{path}.{os.urandom(6).hex()}"
    _create(temporary, text, 0o600)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
