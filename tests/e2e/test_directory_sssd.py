"""
Real sssd and real sudo on a host of their own, fed by identree, configured by the very files of ``docs/sssd``.

Only host names, ports, paths and passwords of the files are replaced.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from identree.core.tokens import host_bind_password
from identree.directory.draft import Draft, Kind
from identree.directory.layout import Layout
from tests.e2e import directory
from tests.e2e.ldaptools import BASE, ONE, SUB, Client
from tests.e2e.pocketid import Control, PocketIdServer, username
from tests.e2e.provider import Provider
from tests.e2e.server import PROGRAMS, SHARED_SECRET, Server, free_port
from tests.e2e.slapd import BASE_DN, BIND_PASSWORD
from tests.e2e.sssd import FULL_NAME, NAME, PAM_REFUSES, SERVER_NAME, ManagedHost, configuration
from tests.e2e.tls import CA, SecureServer

pytestmark = pytest.mark.e2e

USERS, GROUPS = 40, 6
ADA, BOB, CY = username(1), username(2), username(3)
DISABLED = "disabled"
# Of docs/sssd: how often changed rules are asked for, and how often all of them.
SMART_SECONDS, FULL_SECONDS = 30.0, 60.0
# sssd waits ten seconds and at most half a minute more.
ENUMERATION_SECONDS = 60.0
ID = "/usr/bin/id"


def rules(control: Control | PocketIdServer) -> None:
    """Groups with rules for this host, for another one, and for everybody."""

    def change(do: str, **arguments: object) -> None:
        if isinstance(control, PocketIdServer):
            control.change(do, **arguments)
        else:
            getattr(control, do)(**arguments)

    change("add_user", username=DISABLED, disabled=True)
    change("add_group", name="operators", members=[ADA, BOB], claims={"sudoCommands": f"{ID} -u", "sudoHosts": NAME})
    change("add_group", name="elsewhere", members=[ADA], claims={"sudoCommands": f"{ID} -G", "sudoHosts": "db1"})
    change("add_group", name="anywhere", members=[ADA, CY, DISABLED], claims={"sudoCommands": f"{ID} -g"})


@dataclass(frozen=True)
class World:
    pocketid: PocketIdServer
    server: Server
    ldap_port: int
    host: ManagedHost
    drafts: tuple[Draft, ...]

    def person(self, name: str) -> dict[str, list[str]]:
        return self._attributes(f"uid={name},ou=people,{BASE_DN}")

    def group(self, name: str) -> dict[str, list[str]]:
        return self._attributes(f"cn={name},ou=groups,{BASE_DN}")

    def _attributes(self, dn: str) -> dict[str, list[str]]:
        [draft] = [draft for draft in self.drafts if draft.dn == dn]
        return {name: [value.decode() for value in values] for name, values in draft.attributes}

    def passwd_line(self, name: str) -> str:
        entry = {key: values[0] for key, values in self.person(name).items()}
        fields = ("uidNumber", "gidNumber", "gecos", "homeDirectory", "loginShell")
        return ":".join([name, "*", *(entry[field] for field in fields)])

    def groups_of(self, name: str) -> set[str]:
        found = [draft for draft in self.drafts if draft.kind in (Kind.GROUP, Kind.PRIVATE_GROUP)]
        attributes = [dict(draft.attributes) for draft in found]
        return {entry["cn"][0].decode() for entry in attributes if name.encode() in entry.get("memberUid", ())}

    def may_run(self, name: str) -> str:
        return self.host.run("sudo", "-l", "-U", name).output

    def sssd_asked(self, pattern: str) -> list[str]:
        """What sssd searched for, as its log tells: filters that match."""
        searches = re.findall(r"calling ldap_search_ext with \[(.*?)\]\[", self.host.sssd_log("sssd_identree"))
        return [search for search in searches if re.search(pattern, search)]


@pytest.fixture(scope="module")
def drafts() -> tuple[Draft, ...]:
    made = directory.stand_in(USERS, GROUPS, 0)
    rules(Control(made))
    return directory.entries(directory.source(made))


@pytest.fixture(scope="module")
def pocketid() -> Iterator[PocketIdServer]:
    with PocketIdServer(USERS, GROUPS, 0) as made:
        rules(made)
        yield made


@pytest.fixture(scope="module")
def oidc() -> Iterator[dict[str, str]]:
    with Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}) as provider:
        yield provider.settings


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    pocketid: PocketIdServer,
    oidc: dict[str, str],
    drafts: tuple[Draft, ...],
) -> Iterator[World]:
    """``ldap://``, the read-only account, everybody enumerated."""
    place, port = tmp_path_factory.mktemp("plain"), free_port()
    with ExitStack() as stack:
        settings = directory.settings(place, pocketid, port)
        server = stack.enter_context(Server(place, {**oidc, **settings}))
        directory.until(lambda: directory.served(port, "cn=anywhere", "sudoers"), "the directory")
        host = stack.enter_context(ManagedHost(tmp_path_factory.mktemp("host")))
        text = configuration(
            "full-ldap.conf",
            address=f"{SERVER_NAME}:389=>{SERVER_NAME}:{port}",
            password=f"change-me=>{BIND_PASSWORD}",
        )
        host.start_sssd(text, ["getent", "passwd", ADA])
        world = World(pocketid, server, port, host, drafts)
        host.until(lambda: ID in world.may_run(ADA), "sudo rules")
        yield world


@pytest.fixture(scope="module")
def secure(
    tmp_path_factory: pytest.TempPathFactory,
    pocketid: PocketIdServer,
    oidc: dict[str, str],
    drafts: tuple[Draft, ...],
) -> Iterator[World]:
    """``ldaps://`` with the certificate and the password that the host was provisioned with."""
    place, port, ldaps_port = tmp_path_factory.mktemp("secure"), free_port(), free_port()
    ca = CA(tmp_path_factory.mktemp("ca"))
    with ExitStack() as stack:
        settings = {
            **directory.settings(place, pocketid, port),
            **ca.settings(),
            "IDENTREE_LDAP_TLS_LISTEN_ADDR": f"127.0.0.1:{ldaps_port}",
            "IDENTREE_LDAP_PROVISION_ENABLED": "true",
            "IDENTREE_LDAP_EXTERNAL_URL": f"ldaps://{SERVER_NAME}:{ldaps_port}",
        }
        server = SecureServer(place, {**oidc, **settings})
        server.settings["IDENTREE_EXTERNAL_URL"] = f"https://127.0.0.1:{server.port}"
        stack.enter_context(server)
        directory.until(lambda: directory.served(port, "cn=anywhere", "sudoers"), "the directory")
        headers = {"X-Shared-Secret": SHARED_SECRET, "X-Hostname": FULL_NAME}
        answer = server.ask("GET", "/api/client/provision", headers)
        assert answer.status == 200, answer
        given = answer.json
        assert given["ldap_url"] == f"ldaps://{SERVER_NAME}:{ldaps_port}"
        host = stack.enter_context(ManagedHost(tmp_path_factory.mktemp("host")))
        host.write("/etc/identree/ca.crt", given["tls_ca_cert"])
        host.write("/etc/identree/client.crt", given["client_cert"])
        host.write("/etc/identree/client.key", given["client_key"], 0o600)
        text = configuration(
            "full-ldaps.conf",
            address=f"ldaps://{SERVER_NAME}:636=>{given['ldap_url']}",
            identity=f"uid=web1.example.com,ou=identree-hosts,{BASE_DN}=>{given['bind_dn']}",
            password=f"change-me=>{given['bind_password']}",
        )
        host.start_sssd(text, ["getent", "passwd", ADA])
        world = World(pocketid, server, port, host, drafts)
        host.until(lambda: ID in world.may_run(ADA), "sudo rules")
        yield world


@pytest.fixture(params=["plain", "secure"])
def world(request: pytest.FixtureRequest) -> World:
    """Over ``ldap://`` with a bind, and over ``ldaps://`` with a provisioned certificate."""
    found: World = request.getfixturevalue(request.param)
    return found


class TestAccounts:
    def test_passwd(self, world: World) -> None:
        """The same line by name and by number, each field as it is served."""
        line = world.passwd_line(ADA)
        assert world.host.getent("passwd", ADA) == line
        assert world.host.getent("passwd", line.split(":")[2]) == line

    def test_group(self, world: World) -> None:
        """The same members by name and by number."""
        entry = world.group("operators")
        for key in ("operators", entry["gidNumber"][0]):
            name, _, number, members = world.host.getent("group", key).split(":")
            assert (name, number, set(members.split(","))) == ("operators", entry["gidNumber"][0], {ADA, BOB})

    def test_groups_of_a_person(self, world: World) -> None:
        """``id`` names the private group first and every group of the person."""
        told = world.host.run("id", ADA).output
        entry = world.person(ADA)
        assert f"gid={entry['gidNumber'][0]}({ADA})" in told
        assert set(re.findall(r"\d+\(([^)]+)\)", told.partition("groups=")[2])) == world.groups_of(ADA)

    def test_initgroups(self, world: World) -> None:
        """A process that becomes the person has the person's groups."""
        numbers = world.host.run_as(BOB, ID, "-G").output.split()
        assert set(numbers) == {world.group(name)["gidNumber"][0] for name in world.groups_of(BOB)}

    def test_nobody(self, world: World) -> None:
        """Who is in no directory is not found, and neither is a group."""
        assert world.host.run("getent", "passwd", "nosuch").status == 2
        assert world.host.run("getent", "group", "nosuch").status == 2


class TestDisabled:
    """Who is disabled at PocketID (``ldap_account_expire_policy = shadow``)."""

    def test_denied(self, world: World) -> None:
        """The account is known, and its sessions are refused in PAM's account phase, as ``su`` shows."""
        assert world.host.getent("passwd", DISABLED)
        assert world.host.run("su", DISABLED, "-s", "/bin/sh", "-c", "id -un").status != 0

    def test_others_are_not(self, world: World) -> None:
        assert world.host.run("su", ADA, "-s", "/bin/sh", "-c", "id -un").output == f"{ADA}\n"


class TestSudo:
    def test_list(self, world: World) -> None:
        """Rules for this host and for all hosts, and none of another host."""
        told = world.may_run(ADA)
        assert f"{ID} -u" in told
        assert f"{ID} -g" in told
        assert f"{ID} -G" not in told

    def test_allowed(self, world: World) -> None:
        """A served rule lets a person of the directory run its command as root."""
        done = world.host.run_as(ADA, "sudo", ID, "-u")
        assert (done.status, done.output) == (0, "0\n"), done

    def test_not_allowed(self, world: World) -> None:
        """Another command, and the command of a rule for another host, are refused."""
        for argument in ("-r", "-G"):
            done = world.host.run_as(ADA, "sudo", ID, argument)
            assert done.status == 1
            assert "not allowed to execute" in done.errors, done
            assert not done.output

    def test_nobody_of_the_rules(self, world: World) -> None:
        """Whom no rule names may nothing."""
        done = world.host.run_as(username(9), "sudo", ID, "-u")
        assert done.status == 1
        assert "not allowed" in done.errors or "not in the sudoers file" in done.errors, done

    def test_authentication_comes_first(self, world: World) -> None:
        """A rule alone is not enough where PAM refuses: nothing served says ``!authenticate``."""
        usual = world.host.file("/etc/pam.d/sudo").read_text()
        world.host.pam(PAM_REFUSES)
        try:
            done = world.host.run_as(ADA, "sudo", ID, "-u")
        finally:
            world.host.pam(usual)
        assert done.status == 1
        assert not done.output

    def test_changed_rule(self, plain: World) -> None:
        """A changed rule arrives with the next smart refresh, which asks for nothing but what changed."""
        host = plain.host
        # the moment of a full refresh is known only at the start
        host.restart_sssd(["getent", "passwd", CY])
        started = time.monotonic()
        host.until(lambda: f"{ID} -g" in plain.may_run(CY), "the rules as they were")
        asked = len(plain.sssd_asked("sudoRole"))
        plain.pocketid.change_group("anywhere", claims={"sudoCommands": f"{ID} -g,{ID} -n"})
        directory.refresh(plain.server.port)
        host.until(lambda: f"{ID} -n" in plain.may_run(CY), "the changed rule", SMART_SECONDS + 20)
        assert time.monotonic() - started < FULL_SECONDS
        [smart, *_] = plain.sssd_asked("sudoRole")[asked:]
        assert "entryUSN>=" in smart, smart
        assert not [search for search in plain.sssd_asked("sudoRole")[asked:] if "entryUSN" not in search]
        assert host.run_as(CY, "sudo", ID, "-n").status == 1, "id -n alone is an error of id's"


class TestEnumeration:
    def test_everybody(self, plain: World) -> None:
        """Every person and every group is listed once sssd has enumerated, some seconds after its start."""
        finished = "Task [Enumeration [id] of identree]: finished successfully"
        # listing before that would make sssd remember for two minutes that there is nobody
        plain.host.until(
            lambda: finished in plain.host.sssd_log("sssd_identree"), "the enumeration", ENUMERATION_SECONDS
        )
        for database, kinds, name in (
            ("passwd", (Kind.PERSON,), "uid"),
            ("group", (Kind.GROUP, Kind.PRIVATE_GROUP), "cn"),
        ):
            listed = {line.partition(":")[0] for line in plain.host.run("getent", database).output.splitlines()}
            wanted = {dict(draft.attributes)[name][0].decode() for draft in plain.drafts if draft.kind in kinds}
            assert wanted <= listed, wanted - listed


# -- the other schema ------------------------------------------------------------------------------------------------
NESTED = "everyone"


def nested(control: Control | PocketIdServer) -> None:
    """The groups of :func:`rules`, and one that has the people of two of them beside one of its own."""
    rules(control)
    fields = {"members": [username(4)], "claims": {"memberGroups": "operators,anywhere", "sudoCommands": f"{ID} -un"}}
    if isinstance(control, PocketIdServer):
        control.change("add_group", name=NESTED, **fields)
    else:
        control.add_group(NESTED, **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bis(tmp_path_factory: pytest.TempPathFactory, oidc: dict[str, str]) -> Iterator[World]:
    """Groups that name their members' DNs, nested through a claim; sssd with ``ldap_schema = rfc2307bis``."""
    made = directory.stand_in(USERS, GROUPS, 0)
    nested(Control(made))
    layout = Layout(base_dn=BASE_DN, schema="rfc2307bis", nested_groups=True)
    place, port = tmp_path_factory.mktemp("bis"), free_port()
    with ExitStack() as stack:
        pocketid = stack.enter_context(PocketIdServer(USERS, GROUPS, 0))
        nested(pocketid)
        settings = directory.settings(
            place, pocketid, port, IDENTREE_LDAP_SCHEMA="rfc2307bis", IDENTREE_LDAP_NESTED_GROUPS="true"
        )
        server = stack.enter_context(Server(place, {**oidc, **settings}))
        directory.until(lambda: directory.served(port, f"cn={NESTED}", "sudoers"), "the directory")
        host = stack.enter_context(ManagedHost(tmp_path_factory.mktemp("host")))
        text = configuration(
            "full-ldap.conf",
            address=f"{SERVER_NAME}:389=>{SERVER_NAME}:{port}",
            password=f"change-me=>{BIND_PASSWORD}",
            schema="ldap_schema = rfc2307=>ldap_schema = rfc2307bis",
            enumeration="enumerate = true=>enumerate = false",
        )
        host.start_sssd(text, ["getent", "passwd", ADA])
        world = World(pocketid, server, port, host, directory.entries(directory.source(made), layout))
        host.until(lambda: ID in world.may_run(ADA), "sudo rules")
        yield world


class TestMemberDNs:
    """``ldap_schema = rfc2307bis``, with nested groups."""

    def test_person(self, bis: World) -> None:
        line = bis.passwd_line(ADA)
        assert bis.host.getent("passwd", ADA) == line
        assert bis.host.getent("passwd", line.split(":")[2]) == line

    @pytest.mark.parametrize(
        ("group", "members"), [("operators", {ADA, BOB}), (NESTED, {ADA, BOB, CY, username(4)}), (ADA, {ADA})]
    )
    def test_members(self, bis: World, group: str, members: set[str]) -> None:
        """By name and by number; nested ones and those of a private group too; nobody who is disabled."""
        number = bis.group(group)["gidNumber"][0]
        for key in (group, number):
            name, _, gid, listed = bis.host.getent("group", key).split(":")
            assert (name, gid, set(listed.split(","))) == (group, number, members)

    def test_groups_of_a_person(self, bis: World) -> None:
        """What ``id`` names is what the directory has, nested groups with it."""
        for name in (ADA, CY, username(4)):
            told = bis.host.run("id", name).output
            found = set(re.findall(r"\d+\(([^)]+)\)", told.partition("groups=")[2]))
            assert found == bis.groups_of(name), told
            assert NESTED in found
            numbers = bis.host.run_as(name, ID, "-G").output.split()
            assert set(numbers) == {bis.group(group)["gidNumber"][0] for group in found}

    def test_rule_of_nested_members(self, bis: World) -> None:
        """Whoever is a member through another group may run what the group may."""
        done = bis.host.run_as(BOB, "sudo", ID, "-un")
        assert (done.status, done.output) == (0, "root\n"), done
        assert bis.host.run_as(username(9), "sudo", ID, "-un").status == 1


# -- what concerns a host --------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Viewed:
    world: World

    def command(self, *words: str) -> None:
        """What an operator does to the registry beside the running server."""
        server = self.world.server
        subprocess.run(
            [PROGRAMS / "identree", *words],
            check=True,
            cwd=server.directory,
            env=server.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )

    def bind(self, hostname: str) -> Client:
        client = Client(self.world.ldap_port)
        dn = f"uid={hostname},ou=identree-hosts,{BASE_DN}"
        assert client.bind(dn, host_bind_password(SHARED_SECRET.encode(), hostname)) == 0
        return client

    def sees(self, hostname: str, branch: str) -> set[str]:
        """The names in a branch, as the host sees it."""
        with self.bind(hostname) as client:
            found = client.search(f"ou={branch},{BASE_DN}", ONE, ("*", "objectClass"), ["1.1"])
        assert found.code == 0, found
        return {dn.partition(",")[0].partition("=")[2] for dn in found.entries}


OTHER_HOST, NO_HOST = "db1.example.com", "nosuch.example.com"


@pytest.fixture(scope="module")
def viewed(
    tmp_path_factory: pytest.TempPathFactory, oidc: dict[str, str], pocketid: PocketIdServer
) -> Iterator[Viewed]:
    """Hosts bind as themselves; one is for two people, another one for everybody."""
    place, port = tmp_path_factory.mktemp("viewed"), free_port()
    registry = place / "hosts.json"
    registry.touch(0o600)
    hosts = {
        FULL_NAME: {"secret": "secret-of-web1-0123456789abcdef0123", "users": [ADA, DISABLED]},
        OTHER_HOST: {"secret": "secret-of-db1-0123456789abcdef01234", "users": ["*"]},
    }
    registry.write_text(json.dumps(hosts))
    with ExitStack() as stack:
        settings = directory.settings(
            place, pocketid, port, IDENTREE_LDAP_HOST_VIEWS="true", IDENTREE_LDAP_PROVISION_ENABLED="true"
        )
        server = stack.enter_context(Server(place, {**oidc, **settings}))
        directory.until(lambda: directory.served(port, "cn=anywhere", "sudoers"), "the directory")
        host = stack.enter_context(ManagedHost(tmp_path_factory.mktemp("host")))
        text = configuration(
            "full-ldap.conf",
            address=f"{SERVER_NAME}:389=>{SERVER_NAME}:{port}",
            identity=f"cn=readonly,{BASE_DN}=>uid={FULL_NAME},ou=identree-hosts,{BASE_DN}",
            password=f"change-me=>{host_bind_password(SHARED_SECRET.encode(), FULL_NAME)}",
            enumeration="enumerate = true=>enumerate = false",
        )
        host.start_sssd(text, ["getent", "passwd", ADA])
        world = World(pocketid, server, port, host, ())
        host.until(lambda: ID in world.may_run(ADA), "sudo rules")
        yield Viewed(world)


class TestViews:
    """``IDENTREE_LDAP_HOST_VIEWS``: a host sees its people and its rules."""

    def test_people(self, viewed: Viewed) -> None:
        """Those of the registry and no others, with their private groups; everybody where it says ``*``."""
        assert viewed.sees(FULL_NAME, "people") == {ADA, DISABLED}
        groups = viewed.sees(FULL_NAME, "groups")
        assert {ADA, DISABLED, "operators"} <= groups
        assert not {BOB, CY} & groups
        assert viewed.sees(OTHER_HOST, "people") == {*map(username, range(USERS)), DISABLED}

    def test_rules(self, viewed: Viewed) -> None:
        """Those that may concern the host, with the users that it has."""
        assert viewed.sees(FULL_NAME, "sudoers") == {"operators", "anywhere"}
        assert viewed.sees(OTHER_HOST, "sudoers") == {"elsewhere", "anywhere"}
        for hostname, users in ((FULL_NAME, {ADA}), (OTHER_HOST, {ADA, CY})):
            with viewed.bind(hostname) as client:
                found = client.search(f"cn=anywhere,ou=sudoers,{BASE_DN}", BASE, ("*", "objectClass"), ["sudoUser"])
            [entry] = found.entries.values()
            assert {user.decode() for user in entry["sudoUser"]} == users

    def test_nobody_else(self, viewed: Viewed) -> None:
        """A host cannot tell somebody whom it must not see from somebody who is not there, however it asks."""
        with viewed.bind(FULL_NAME) as client:
            hidden, absent = (f"uid={name},ou=people,{BASE_DN}" for name in (BOB, "nosuch"))
            results = [client.search(dn, BASE, ("*", "objectClass")) for dn in (hidden, absent)]
            assert [found.code for found in results] == [32, 32]
            assert results[0].matched_dn == results[1].matched_dn
            assert client.compare(hidden, "uid", BOB.encode()) == client.compare(absent, "uid", b"nosuch") == 32
            for filter in (
                ("=", "uid", BOB.encode()),
                ("=", "memberUid", BOB.encode()),
                ("=", "sudoUser", BOB.encode()),
            ):
                found = client.search(BASE_DN, SUB, filter, ["1.1"])
                assert (found.code, found.order) == (0, []), filter

    def test_unknown_host(self, viewed: Viewed) -> None:
        """A host that the registry does not have is not let in, whatever it can derive."""
        with Client(viewed.world.ldap_port) as client:
            password = host_bind_password(SHARED_SECRET.encode(), NO_HOST)
            assert client.bind(f"uid={NO_HOST},ou=identree-hosts,{BASE_DN}", password) == 49

    def test_sssd(self, viewed: Viewed) -> None:
        """Through sssd: one of its people, one of the others, members of a group, and rules."""
        host = viewed.world.host
        assert host.getent("passwd", ADA)
        assert host.run("getent", "passwd", BOB).status == 2
        assert host.getent("group", "operators").rpartition(":")[2] == ADA
        told = viewed.world.may_run(ADA)
        assert f"{ID} -u" in told
        assert f"{ID} -G" not in told
        assert host.run_as(ADA, "sudo", ID, "-u").output == "0\n"

    def test_removed_host(self, viewed: Viewed) -> None:
        """A host that is taken out of the registry is cut off at once, and cannot come back."""
        with viewed.bind(OTHER_HOST) as client, viewed.bind(FULL_NAME) as other:
            viewed.command("remove-host", OTHER_HOST)
            with pytest.raises((EOFError, ConnectionResetError)):
                # told why, in a notice of disconnection or not, and then nothing more
                while client.receive():
                    pass
            assert other.search("", BASE, ("*", "objectClass"), ["1.1"]).code == 0
            with pytest.raises(AssertionError):
                viewed.bind(OTHER_HOST)
        viewed.command("add-host", OTHER_HOST)


def save(file: Path, content: object) -> None:
    """As an operator's tool saves it: at once, and for the owner only."""
    new = file.with_suffix(".new")
    new.touch(0o600)
    new.write_text(json.dumps(content))
    new.rename(file)


RULE = {"group": "ops", "commands": f"{ID} -u"}


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory, oidc: dict[str, str]) -> Iterator[tuple[Path, ManagedHost]]:
    """A server of rules alone, its rules file, and a host with accounts of its own."""
    place, port = tmp_path_factory.mktemp("bridge"), free_port()
    file = place / "sudorules.json"
    save(file, [RULE])
    with ExitStack() as stack:
        stack.enter_context(Server(place, {**oidc, **directory.settings(place, None, port)}))
        directory.until(lambda: directory.served(port, "cn=ops", "sudoers"), "the rules")
        host = stack.enter_context(ManagedHost(tmp_path_factory.mktemp("host")))
        for name, line in (
            ("passwd", "opal:x:64001:64001:Opal:/:/bin/sh\noscar:x:64002:64002:Oscar:/:/bin/sh"),
            ("group", "opal:x:64001:\noscar:x:64002:\nops:x:64003:opal"),
        ):
            known = host.file(f"/etc/{name}").read_text()
            host.write(f"/etc/{name}", f"{known.rstrip()}\n{line}\n")
        text = configuration(
            "bridge.conf",
            address=f"{SERVER_NAME}:389=>{SERVER_NAME}:{port}",
            password=f"change-me=>{BIND_PASSWORD}",
        )
        host.start_sssd(text)
        host.until(lambda: ID in host.run("sudo", "-l", "-U", "opal").output, "sudo rules")
        yield file, host


class TestBridge:
    """Accounts of the host's own, rules from the rules file."""

    def test_member_of_the_group(self, bridge: tuple[Path, ManagedHost]) -> None:
        """A rule's group is the host's own; its members may run the command, and nothing else."""
        _, host = bridge
        assert host.run_as("opal", "sudo", ID, "-u").output == "0\n"
        refused = host.run_as("opal", "sudo", ID, "-g")
        assert refused.status == 1
        assert "not allowed to execute" in refused.errors, refused

    def test_others(self, bridge: tuple[Path, ManagedHost]) -> None:
        _, host = bridge
        refused = host.run_as("oscar", "sudo", ID, "-u")
        assert refused.status == 1
        assert not refused.output

    def test_changed_file(self, bridge: tuple[Path, ManagedHost]) -> None:
        """A changed rules file is served without a restart, and arrives with the next smart refresh."""
        file, host = bridge
        save(file, [{**RULE, "commands": f"{ID} -u,{ID} -g"}])
        host.until(
            lambda: host.run_as("opal", "sudo", ID, "-g").output == "0\n", "the changed rule", SMART_SECONDS + 20
        )
