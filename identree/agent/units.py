"""
What runs on a host by itself: systemd units and timers, the cron lines where there is no systemd, and the audit rules
(spec/host-agent sections 13 and 14). Text alone, so that the server serves what ``identree setup`` writes.
"""

from __future__ import annotations

AGENT = "/usr/local/bin/identree"
HASH_FILE = "/etc/identree-breakglass"
UNIT_DIRECTORY = "/etc/systemd/system"
# cron ignores names with a dot, and so the copies that the set-up may leave
CRON_FILE = "/etc/cron.d/identree-rotate"
RULES_FILE = "/etc/audit/rules.d/identree.rules"

# No `Requires=` in a timer: it would run the service whenever the timer starts, at every boot. No SuccessExitStatus:
# it would hide every failure. The address families leave out netlink, which the resolver can do without.
_SANDBOX = """\
UMask=0077
NoNewPrivileges=true
CapabilityBoundingSet={capabilities}
ProtectSystem=strict
ProtectHome=true
ProtectClock=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectControlGroups=true
PrivateTmp=true
PrivateDevices=true
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
LockPersonality=true
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
StateDirectory=identree
StateDirectoryMode=0700
"""

_SERVICE = """\
[Unit]
Description={description}
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
ExecStart={agent} {command}
TimeoutStartSec=90
{sandbox}{more}"""

_TIMER = """\
[Unit]
Description={description}

[Timer]
{when}
[Install]
WantedBy=timers.target
"""

ROTATE_SERVICE, ROTATE_TIMER = "identree-rotate.service", "identree-rotate.timer"
HEARTBEAT_SERVICE, HEARTBEAT_TIMER = "identree-heartbeat.service", "identree-heartbeat.timer"
RENEW_SERVICE, RENEW_TIMER = "identree-renew.service", "identree-renew.timer"
NAMES = (ROTATE_SERVICE, ROTATE_TIMER, HEARTBEAT_SERVICE, HEARTBEAT_TIMER, RENEW_SERVICE, RENEW_TIMER)
# Installed only where a client certificate is configured.
RENEW_NAMES = (RENEW_SERVICE, RENEW_TIMER)
TIMERS = (ROTATE_TIMER, HEARTBEAT_TIMER, RENEW_TIMER)

# Keys of the audit rules; searches and alerts of operators use them.
AUDIT_KEYS = (
    "identree-breakglass",
    "identree-breakglass-report",
    "identree-config",
    "identree-pam-config",
    "identree-sssd-config",
    "identree-mtls-key",
)
# The longest path that an audit rule may name, in bytes (PATH_MAX without the final NUL).
MAX_WATCHED_BYTES = 4095
# The longest key of an audit rule, in bytes (AUDIT_MAX_KEY_LEN).
MAX_KEY_BYTES = 256


def unit(name: str, *, agent: str = AGENT, hash_file: str = HASH_FILE) -> str:
    """
    The text of a unit.

    :param hash_file: of the break-glass password; its directory is one of those that the rotation may write to.
    :raise KeyError: there is no such unit.
    """
    if name not in NAMES:
        raise KeyError(name)
    # The heartbeat rotates as well, when the server asks for it. Both without MemoryDenyWriteExecute: crypt(3) is
    # called through ctypes, whose closures need such memory.
    directory = hash_file.rpartition("/")[0] or "/"
    places = ["/etc"] if directory == "/etc" or directory.startswith("/etc/") else ["/etc", "-" + directory]
    if name == ROTATE_SERVICE:
        return _service(
            "Change the break-glass password when it is due", "rotate-breakglass", agent, [*places, "/run"], ""
        )
    if name == HEARTBEAT_SERVICE:
        return _service("Tell identree that this host is alive", "heartbeat", agent, [*places, "/run"], "")
    if name == RENEW_SERVICE:
        # It gives sssd, which is not root everywhere, a key that sssd can read.
        return _service(
            "Renew the client certificate of this host before it ends",
            "renew-cert",
            agent,
            ["-/etc/identree", "-/etc/sssd", "/run"],
            "CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER",
            executable=False,
        )
    if name == ROTATE_TIMER:
        return _timer(
            "Look weekly whether the break-glass password is due",
            "OnCalendar=weekly\nPersistent=true\nRandomizedDelaySec=3600\n",
        )
    if name == HEARTBEAT_TIMER:
        return _timer(
            "Tell identree every five minutes that this host is alive",
            "OnBootSec=30s\nOnUnitActiveSec=5min\nRandomizedDelaySec=60s\nAccuracySec=15s\n",
        )
    return _timer(
        "Look weekly whether the client certificate is to be renewed",
        "OnCalendar=weekly\nPersistent=true\nRandomizedDelaySec=86400\n",
    )


def _service(
    description: str, command: str, agent: str, writable: list[str], capabilities: str, *, executable: bool = True
) -> str:
    more = f"ReadWritePaths={' '.join(writable)}\n"
    if not executable:
        more += "MemoryDenyWriteExecute=true\n"
    sandbox = _SANDBOX.format(capabilities=capabilities)
    return _SERVICE.format(description=description, agent=agent, command=command, sandbox=sandbox, more=more)


def _timer(description: str, when: str) -> str:
    return _TIMER.format(description=description, when=when)


def cron(*, agent: str = AGENT, renew: bool = False) -> str:
    """
    The file for hosts without systemd.

    :param renew: with the line that renews the client certificate.
    """
    lines = [
        "# identree: change the break-glass password when it is due, and tell the server that this host is alive.",
        "# Written by identree setup, which may write it again.",
        f"0 3 * * 0 root {agent} rotate-breakglass",
        f"*/5 * * * * root {agent} heartbeat >/dev/null 2>&1",
    ]
    if renew:
        lines.append(f"30 3 * * 1 root {agent} renew-cert")
    return "\n".join(lines) + "\n"


def audit_rules(
    *,
    agent: str = AGENT,
    hash_file: str = HASH_FILE,
    key_file: str = "/etc/identree/client.key",
    pam_files: tuple[str, ...] = ("/etc/pam.d/sudo", "/etc/pam.d/sudo-i"),
) -> list[tuple[str, str, str]]:
    """
    Path, permissions and key of every watch.

    Not all of the paths need be there, but a rule whose *directory* is missing makes the loading stop; who writes the
    file leaves such rules out, see :func:`audit_text`.
    """
    return [
        (hash_file, "r", "identree-breakglass"),
        (hash_file, "wa", "identree-breakglass"),
        ("/var/run/identree-breakglass-used", "wa", "identree-breakglass-report"),
        ("/var/run/identree-breakglass-failures", "wa", "identree-breakglass-report"),
        ("/etc/identree/", "wa", "identree-config"),
        (agent, "wa", "identree-config"),
        *((path, "wa", "identree-pam-config") for path in pam_files),
        ("/etc/sssd/sssd.conf", "wa", "identree-sssd-config"),
        (key_file, "r", "identree-mtls-key"),
        ("/etc/identree/certificates/", "r", "identree-mtls-key"),  # where renew-cert keeps the keys themselves
    ]


def audit_text(rules: list[tuple[str, str, str]]) -> str:
    """
    The file of :func:`audit_rules`.

    :raise ValueError: a rule that auditctl would not read as it is meant.
    """
    lines = [
        "## identree: who reads or changes what decides about root.",
        "## Written by identree setup, which may write it again.",
    ]
    lines += [f"-w {path} -p {permissions} -k {key}" for path, permissions, key in rules]
    for number, line in enumerate(lines, 1):
        if problem := audit_problem(line):
            raise ValueError(f"line {number}: {problem}")
    return "\n".join(lines) + "\n"


def audit_problem(line: str) -> str:
    """
    What is wrong with a line of a rules file; nothing when it is one of the few forms that we write.

    auditctl splits at blanks and knows no quotes (auditctl(8), "-R file"), so a path cannot hold any.
    """
    if not line or line.startswith("#"):
        return ""
    words = line.split(" ")
    if len(words) != 6 or words[::2] != ["-w", "-p", "-k"]:
        return "a rule is -w PATH -p PERMISSIONS -k KEY"
    path, permissions, key = words[1], words[3], words[5]
    if not path.startswith("/") or not path.isascii() or not path.isprintable():
        return f"{path!r} cannot be watched; it must be an absolute path of plain characters"
    if len(path) > MAX_WATCHED_BYTES:
        return "the path is too long"
    if not permissions or len(set(permissions)) != len(permissions) or not set(permissions) <= set("rwxa"):
        return f"{permissions!r} are no permissions; they are some of r, w, x and a"
    if not key or len(key) > MAX_KEY_BYTES or not key.isascii() or not key.isprintable():
        return f"{key!r} is no key"
    return ""
