"""OpenLDAP's commands, and the searches of nslcd and of sudo's own LDAP backend, against a running server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from identree.directory.draft import Draft, Kind
from tests.e2e import directory
from tests.e2e.ldaptools import BASE, SUB, Client, Told, parse_filter
from tests.e2e.pocketid import PocketIdServer, username
from tests.e2e.provider import Provider
from tests.e2e.server import SHARED_SECRET, free_port
from tests.e2e.slapd import BASE_DN, BIND_DN
from tests.e2e.sssd import FULL_NAME, ManagedHost
from tests.e2e.tls import CA, SERVER_NAME, SecureServer

pytestmark = pytest.mark.e2e

# An address of loopback where nobody listens on the ports that the commands name.
ADDRESS = "127.3.8.9"
CLIENT_ADDRESS = "127.0.0.1"
# As the documented commands have it.
PASSWORD = "secret"
USERS, GROUPS, RULES = 1200, 20, 10
ADA = username(1)
HOST_DN = f"uid={FULL_NAME},ou=identree-hosts,{BASE_DN}"
MUTUAL = (
    "LDAPTLS_CERT=/etc/identree/client.crt \\\n"
    "LDAPTLS_KEY=/etc/identree/client.key \\\n"
    "LDAPTLS_CACERT=/etc/identree/ca.crt \\\n"
)


@dataclass(frozen=True)
class World:
    """:ivar host: its ``/etc/hosts`` leads to the server, and its ``/etc/identree`` is provisioned."""

    server: SecureServer
    host: ManagedHost
    ca: CA
    drafts: tuple[Draft, ...]

    def shell(self, command: str) -> Told:
        return self.host.run("sh", "-c", command)

    def tool(self, command: str, more: str = "") -> Told:
        """A command of OpenLDAP over plain LDAP, bound as the read-only account."""
        program, _, rest = command.partition(" ")
        return self.shell(f"{program} -x -H ldap://{SERVER_NAME} -D {BIND_DN} -w {PASSWORD} {more} {rest}")

    def mutual(self, command: str, certificate: str = "client", ca: str = "ca") -> Told:
        """Over LDAPS with a certificate below ``/etc/identree``."""
        program, _, rest = command.partition(" ")
        return self.shell(
            f"LDAPTLS_CERT=/etc/identree/{certificate}.crt LDAPTLS_KEY=/etc/identree/{certificate}.key "
            f"LDAPTLS_CACERT=/etc/identree/{ca}.crt {program} -H ldaps://{SERVER_NAME} {rest}"
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("server")
    ca = CA(tmp_path_factory.mktemp("ca"))
    with ExitStack() as stack:
        pocketid = stack.enter_context(PocketIdServer(USERS, GROUPS, RULES))
        oidc = stack.enter_context(Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}))
        settings = {
            **oidc.settings,
            **directory.settings(place, pocketid, 0),
            **ca.settings(),
            "IDENTREE_LDAP_LISTEN_ADDR": f"{ADDRESS}:389",
            "IDENTREE_LDAP_TLS_LISTEN_ADDR": f"{ADDRESS}:636",
            "IDENTREE_LDAP_BIND_PASSWORD": PASSWORD,
            "IDENTREE_LDAP_PROVISION_ENABLED": "true",
        }
        server = SecureServer(place, settings)
        server.settings["IDENTREE_EXTERNAL_URL"] = f"https://{SERVER_NAME}:{server.port}"
        stack.enter_context(server)
        answer = server.ask("GET", "/api/client/provision", {"X-Shared-Secret": SHARED_SECRET, "X-Hostname": FULL_NAME})
        assert answer.status == 200, answer
        host = stack.enter_context(ManagedHost(tmp_path_factory.mktemp("host"), names=()))
        host.write("/etc/hosts", f"127.0.0.1 localhost\n{ADDRESS} {SERVER_NAME}\n")
        host.write("/etc/identree/ca.crt", answer.json["tls_ca_cert"])
        host.write("/etc/identree/client.crt", answer.json["client_cert"])
        host.write("/etc/identree/client.key", answer.json["client_key"], 0o600)
        made = World(server, host, ca, directory.entries(directory.source(directory.stand_in(USERS, GROUPS, RULES))))
        directory.until(lambda: ADA in made.tool(f"ldapsearch -b {BASE_DN} '(uid={ADA})'").output, "the directory")
        yield made


def of_kind(world: World, kind: Kind) -> set[str]:
    return {draft.dn for draft in world.drafts if draft.kind is kind}


def dns(told: Told) -> set[str]:
    found = [entry["dn"][0] for entry in told.entries]
    assert len(found) == len(set(found)), "an entry came twice"
    return set(found)


class TestTroubleshooting:
    """The commands of the operator's guide, word for word."""

    def test_plain(self, world: World) -> None:
        told = world.shell(
            "# Test plaintext LDAP (port 389)\n"
            'ldapsearch -H ldap://identree.example.com:389 -b "dc=example,dc=com" '
            '-D "cn=readonly,dc=example,dc=com" -w secret "(uid=*)"'
        )
        assert told.status == 0, told
        assert dns(told) == of_kind(world, Kind.PERSON)

    def test_mutual_tls(self, world: World) -> None:
        told = world.shell(
            "# Test LDAPS with mTLS (port 636)\n" + MUTUAL + "ldapsearch -H ldaps://identree.example.com:636 "
            '-b "dc=example,dc=com" -D "cn=readonly,dc=example,dc=com" -w secret "(uid=*)"'
        )
        assert told.status == 0, told
        assert dns(told) == of_kind(world, Kind.PERSON)

    def test_everything(self, world: World) -> None:
        told = world.shell(
            MUTUAL + "ldapsearch -H ldaps://identree.example.com:636 "
            '-b "dc=example,dc=com" -D "cn=readonly,dc=example,dc=com" -w secret "(objectClass=*)"'
        )
        assert told.status == 0, told.errors
        assert dns(told) == {draft.dn for draft in world.drafts}

    def test_verify(self, world: World) -> None:
        told = world.shell("openssl verify -CAfile /etc/identree/ca.crt /etc/identree/client.crt")
        assert (told.status, told.output) == (0, "/etc/identree/client.crt: OK\n"), told

    def test_end_date(self, world: World) -> None:
        told = world.shell("openssl x509 -in /etc/identree/client.crt -noout -enddate")
        assert told.output.startswith("notAfter="), told

    def test_not_about_to_expire(self, world: World) -> None:
        told = world.shell(
            "if openssl x509 -in /etc/identree/client.crt -noout -checkend 2592000 2>/dev/null; then\n"
            "  : # OK\n"
            "else\n"
            '  echo "WARN: identree client certificate expires within 30 days"\n'
            "fi"
        )
        assert told.status == 0
        assert "WARN" not in told.output


class TestTools:
    def test_who_am_i(self, world: World) -> None:
        assert world.tool("ldapwhoami").output == f"dn:{BIND_DN}\n"

    def test_wrong_password(self, world: World) -> None:
        told = world.shell(f"ldapwhoami -x -H ldap://{SERVER_NAME} -D {BIND_DN} -w wrong")
        assert told.status == 49, told

    def test_anonymous(self, world: World) -> None:
        """Not allowed by default."""
        assert world.shell(f"ldapwhoami -x -H ldap://{SERVER_NAME}").status == 50

    @pytest.mark.parametrize(
        ("assertion", "status"),
        [
            ("cn=user000001,ou=groups uid:x", 16),
            (f"uid={ADA},ou=people loginShell:/bin/bash", 6),
            (f"uid={ADA},ou=people loginShell:/bin/sh", 5),
            (f"uid={ADA},ou=people uid:{ADA.upper()}", 6),
            ("uid=nosuch,ou=people uid:nosuch", 32),
        ],
        ids=["no such attribute", "true", "false", "true by the matching rule", "no such object"],
    )
    def test_compare(self, world: World, assertion: str, status: int) -> None:
        rdn, _, value = assertion.partition(" ")
        assert world.tool(f"ldapcompare {rdn},{BASE_DN} {value}").status == status

    def test_paging(self, world: World) -> None:
        """As graphical clients page; each entry comes once."""
        told = world.tool(f"ldapsearch -E pr=500/noprompt -b ou=people,{BASE_DN} '(uid=*)' 1.1")
        assert told.status == 0, told.errors
        assert dns(told) == of_kind(world, Kind.PERSON)
        assert told.output.count("pagedresults: cookie=") == -(-USERS // 500)

    def test_start_tls(self, world: World) -> None:
        told = world.tool("ldapwhoami", "-ZZ").errors
        assert "Connect error" in told or "TLS" in told, "the server's certificate is checked"
        command = f"ldapwhoami -x -ZZ -H ldap://{SERVER_NAME} -D {BIND_DN} -w {PASSWORD}"
        assert world.shell(MUTUAL + command).output == f"dn:{BIND_DN}\n"

    def test_external(self, world: World) -> None:
        """The client's certificate is its identity."""
        told = world.mutual("ldapwhoami -Y EXTERNAL -Q")
        assert told.output == f"dn:{HOST_DN}\n", told

    def test_host_bind(self, world: World) -> None:
        """A host binds with its certificate, whatever the password."""
        assert world.mutual(f"ldapwhoami -x -D {HOST_DN} -w anything").output == f"dn:{HOST_DN}\n"
        other = HOST_DN.replace(FULL_NAME, "web2.example.com")
        assert world.mutual(f"ldapwhoami -x -D {other} -w anything").status == 49

    def test_size_limit(self, world: World) -> None:
        told = world.tool(f"ldapsearch -z 5 -b ou=people,{BASE_DN} '(uid=*)' 1.1")
        assert (told.status, len(dns(told))) == (4, 5)

    def test_exact_size(self, world: World) -> None:
        """As many entries as the limit are no excess."""
        told = world.tool(f"ldapsearch -z {USERS} -b ou=people,{BASE_DN} '(uid=*)' 1.1")
        assert (told.status, len(dns(told))) == (0, USERS)

    def test_no_such_object(self, world: World) -> None:
        told = world.tool(f"ldapsearch -b uid=nosuch,ou=people,{BASE_DN}")
        assert told.status == 32
        assert f"matchedDN: ou=people,{BASE_DN}" in told.output

    def test_one_level(self, world: World) -> None:
        told = world.tool(f"ldapsearch -s one -b {BASE_DN} 1.1")
        assert dns(told) == of_kind(world, Kind.CONTAINER)

    def test_one_entry(self, world: World) -> None:
        """A base search of an entry gives the entry, with every attribute as it was built."""
        dn = f"uid={ADA},ou=people,{BASE_DN}"
        [entry] = world.tool(f"ldapsearch -LLL -o ldif-wrap=no -s base -b {dn}").entries
        [draft] = [draft for draft in world.drafts if draft.dn == dn]
        assert entry == {"dn": [dn], **{name: [v.decode() for v in values] for name, values in draft.attributes}}

    @pytest.mark.parametrize(
        "command",
        [
            f"ldapdelete uid={ADA},ou=people,{BASE_DN}",
            f"ldapmodrdn uid={ADA},ou=people,{BASE_DN} uid=other",
            f"ldappasswd -s new uid={ADA},ou=people,{BASE_DN}",
            f"ldapmodify <<'END'\ndn: uid={ADA},ou=people,{BASE_DN}\nchangetype: modify\nreplace: sn\nsn: x\nEND",
            f"ldapadd <<'END'\ndn: ou=new,{BASE_DN}\nobjectClass: organizationalUnit\nou: new\nEND",
        ],
        ids=["delete", "rename", "password", "modify", "add"],
    )
    def test_read_only(self, world: World, command: str) -> None:
        """Every operation that writes is refused, and the connection lives on for its answer."""
        told = world.tool(command)
        assert told.status == 53 or (told.status == 1 and "(53)" in told.output + told.errors), told


class TestRootDSE:
    def test_before_bind(self) -> None:
        """As sssd reads it: without a bind, ``objectclass`` in its spelling."""
        with Client(389, ADDRESS) as client:
            names = "* altServer namingContexts supportedControl supportedExtension lastUSN supportedLDAPVersion"
            found = client.search("", BASE, parse_filter("(objectclass=*)"), names.split())
            assert found.code == 0
            entry = found.entries[""]
            assert entry["namingContexts"] == (BASE_DN.encode(),)
            assert entry["supportedLDAPVersion"] == (b"3",)
            assert b"1.2.840.113556.1.4.319" in entry["supportedControl"]
            assert b"1.3.6.1.4.1.1466.20037" in entry["supportedExtension"]
            assert int(entry["lastUSN"][0]) > 0

    def test_nothing_else_before_bind(self) -> None:
        with Client(389, ADDRESS) as client:
            found = client.search(BASE_DN, SUB, parse_filter("(objectClass=*)"))
            assert (found.code, found.entries) == (50, {})

    def test_operational(self, world: World) -> None:
        """``+`` gives what ``*`` does not; the subschema that it names can be read."""
        [entry] = world.tool("ldapsearch -b '' -s base +").entries
        [name] = entry["subschemaSubentry"]
        [schema] = world.tool(f"ldapsearch -o ldif-wrap=no -b {name} -s base '(objectClass=subschema)' +").entries
        assert any("sudoUser" in line for line in schema["attributeTypes"])
        assert any("sudoRole" in line for line in schema["objectClasses"])

    def test_change_numbers(self, world: World) -> None:
        """Every entry has one, of constant width, and none is above ``lastUSN``."""
        [root] = world.tool("ldapsearch -b '' -s base lastUSN").entries
        entries = world.tool(f"ldapsearch -b {BASE_DN} '(objectClass=*)' entryUSN modifyTimestamp").entries
        assert len(entries) == len(world.drafts)
        numbers = {entry["entryUSN"][0] for entry in entries}
        assert {len(number) for number in numbers} == {10}
        assert max(map(int, numbers)) <= int(root["lastUSN"][0])


class TestRefusedCertificates:
    """LDAPS clients that are turned away; the log says why."""

    def given(self, world: World, ca: CA, name: str, days: int = 30, usage: str = "clientAuth") -> None:
        certificate, key = ca.issue(f"{name}.example.com", usage, days)
        world.host.write(f"/etc/identree/{name}.crt", certificate.read_text())
        world.host.write(f"/etc/identree/{name}.key", key.read_text(), 0o600)

    def refused(self, world: World, name: str, reason: str) -> None:
        """By a client that shows its certificate whatever authorities the server names; LDAP's own would not."""
        before = self.count(world, reason)
        world.shell(
            f"cd /etc/identree && echo | openssl s_client -connect {SERVER_NAME}:636 -servername {SERVER_NAME} "
            f"-CAfile ca.crt -cert {name}.crt -key {name}.key -quiet -no_ign_eof"
        )
        directory.until(lambda: self.count(world, reason) == before + 1, f"the refusal of {reason}", 10)
        assert f"TLS_REJECTED LDAPS client {CLIENT_ADDRESS}" in world.server.log
        assert f"reason={reason}" in world.server.log
        assert world.mutual(f"ldapwhoami -x -D {BIND_DN} -w {PASSWORD}", certificate=name).status != 0

    def count(self, world: World, reason: str) -> float:
        text = world.server.ask("GET", "/metrics").body.decode()
        found = re.search(rf'identree_ldap_connections_refused_total{{reason="{reason}"}} ([0-9.]+)', text)
        return float(found[1]) if found else 0.0

    def test_expired(self, world: World) -> None:
        self.given(world, world.ca, "expired", days=-1)
        self.refused(world, "expired", "expired")

    def test_foreign(self, world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.given(world, CA(tmp_path_factory.mktemp("foreign"), "another CA"), "foreign")
        self.refused(world, "foreign", "foreign_ca")

    def test_wrong_purpose(self, world: World) -> None:
        self.given(world, world.ca, "purpose", usage="serverAuth")
        self.refused(world, "purpose", "wrong_purpose")

    def test_none(self, world: World) -> None:
        before = self.count(world, "no_certificate")
        told = world.shell(
            f"LDAPTLS_CACERT=/etc/identree/ca.crt ldapwhoami -x -H ldaps://{SERVER_NAME} -D {BIND_DN} -w {PASSWORD}"
        )
        assert told.status != 0
        directory.until(lambda: self.count(world, "no_certificate") == before + 1, "the refusal", 10)
        assert "it showed no certificate" in world.server.log

    def test_ours_is_not(self, world: World) -> None:
        """The same command with the provisioned certificate."""
        assert world.mutual(f"ldapwhoami -x -D {BIND_DN} -w {PASSWORD}").status == 0


class TestNslcd:
    """The searches of nss-pam-ldapd (spec/ldap section 11.2)."""

    PASSWD = "objectClass uid uidNumber gidNumber gecos cn homeDirectory loginShell"
    GROUP = "cn gidNumber memberUid member"
    SHADOW = "uid shadowLastChange shadowMin shadowMax shadowWarning shadowInactive shadowExpire shadowFlag"

    def ask(self, world: World, filter: str, attributes: str) -> list[dict[str, list[str]]]:
        told = world.tool(f"ldapsearch -LLL -o ldif-wrap=no -b {BASE_DN} '{filter}' {attributes}")
        assert told.status == 0, told
        return told.entries

    def served(self, world: World, dn: str) -> dict[str, list[str]]:
        [draft] = [draft for draft in world.drafts if draft.dn == dn]
        return {name: [value.decode() for value in values] for name, values in draft.attributes}

    def test_passwd(self, world: World) -> None:
        served = self.served(world, f"uid={ADA},ou=people,{BASE_DN}")
        [by_name] = self.ask(world, f"(&(objectClass=posixAccount)(uid={ADA}))", self.PASSWD)
        number = served["uidNumber"][0]
        [by_number] = self.ask(world, f"(&(objectClass=posixAccount)(uidNumber={number}))", self.PASSWD)
        assert by_name == by_number
        assert {name: by_name[name] for name in self.PASSWD.split()} == {n: served[n] for n in self.PASSWD.split()}

    def test_all(self, world: World) -> None:
        assert len(self.ask(world, "(objectClass=posixAccount)", self.PASSWD)) == USERS
        assert len(self.ask(world, "(objectClass=posixGroup)", self.GROUP)) == USERS + GROUPS

    def test_groups_of_a_member(self, world: World) -> None:
        dn = f"uid={ADA},ou=people,{BASE_DN}"
        found = self.ask(world, f"(&(objectClass=posixGroup)(|(memberUid={ADA})(member={dn})))", self.GROUP)
        expected = {
            draft.dn
            for draft in world.drafts
            if draft.kind in (Kind.GROUP, Kind.PRIVATE_GROUP)
            and ADA.encode() in dict(draft.attributes).get("memberUid", ())
        }
        assert {entry["dn"][0] for entry in found} == expected

    def test_shadow(self, world: World) -> None:
        """Nobody must change a password that there is none of."""
        [entry] = self.ask(world, f"(&(objectClass=shadowAccount)(uid={ADA}))", self.SHADOW)
        assert entry.get("shadowLastChange") != ["0"]
        assert "shadowExpire" not in entry

    def test_no_password_of_people(self, world: World) -> None:
        """PAM of nslcd binds as the person: nobody can."""
        command = f"ldapwhoami -x -H ldap://{SERVER_NAME} -D uid={ADA},ou=people,{BASE_DN} -w {PASSWORD}"
        assert world.shell(command).status == 49


class TestSudoLdap:
    """The searches of sudo's own LDAP backend (spec/ldap section 11.3)."""

    def ask(self, world: World, filter: str) -> set[str]:
        told = world.tool(f"ldapsearch -LLL -b ou=sudoers,{BASE_DN} '{filter}'")
        assert told.status == 0, told
        return dns(told)

    def rules(self, world: World) -> dict[str, set[bytes]]:
        roles = [draft for draft in world.drafts if draft.kind is Kind.ROLE]
        return {role.dn: set(dict(role.attributes)["sudoUser"]) for role in roles}

    def test_defaults(self, world: World) -> None:
        assert self.ask(world, "(&(objectClass=sudoRole)(cn=defaults))") == set()

    def test_first_pass(self, world: World) -> None:
        """By name, number and groups, without what is denied to them."""
        groups = "".join(f"(sudoUser=%group{n:04d})(sudoUser=%#{300_000 + n})" for n in range(400))
        who = f"(sudoUser={ADA})(sudoUser=#200001)(sudoUser=%{ADA})(sudoUser=%#300001){groups}(sudoUser=ALL)"
        denied = who.replace("sudoUser=", "sudoUser=!")
        found = self.ask(world, f"(&(objectClass=sudoRole)(|{who})(!(|{denied})))")
        assert found == {dn for dn, users in self.rules(world).items() if ADA.encode() in users}
        assert found

    def test_second_pass(self, world: World) -> None:
        """Netgroups: nobody's here."""
        assert self.ask(world, "(&(objectClass=sudoRole)(|(sudoUser=+*)(sudoUser=!+*))(!(|(sudoUser=ALL))))") == set()

    def test_timed(self, world: World) -> None:
        """A rule without a beginning or an end is found through the absence of both."""
        timed = (
            "(&(|(!(sudoNotAfter=*))(sudoNotAfter>=20260101120000.0Z))"
            "(|(!(sudoNotBefore=*))(sudoNotBefore<=20260101120000.0Z)))"
        )
        assert self.ask(world, f"(&(objectClass=sudoRole)(sudoUser={ADA}){timed})") == {
            dn for dn, users in self.rules(world).items() if ADA.encode() in users
        }
