"""What of a sudo rule is served, and that leaving out never widens."""

import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.sudo import (
    ITEM_LENGTH,
    VERDICT_MESSAGES,
    Checked,
    Grant,
    SudoRule,
    check,
    check_rule,
    command_problem,
    generalized_time,
    host_problem,
    negates,
    option_allowed,
    role_draft,
    rule_of_claims,
)
from tests.directory.sources import LAYOUT, attributes


def rule(**fields: str) -> SudoRule:
    return SudoRule(**{"group": "ops", "commands": "/bin/ls", **fields})  # type: ignore[arg-type]


def granted(**fields: str) -> Grant:
    grant = check(rule(**fields), "false").grant
    assert grant is not None
    return grant


def told(checked: Checked) -> list[tuple[str, str, str, bool]]:
    return [(verdict.field, verdict.item, verdict.key, verdict.refuses) for verdict in checked.verdicts]


def refused(**fields: str) -> list[str]:
    """Keys of the verdicts that refuse the rule; at least one."""
    checked = check(rule(**fields), "claims")
    assert checked.grant is None, fields
    return [verdict.key for verdict in checked.verdicts if verdict.refuses]


class CommandTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """Paths with arguments and ALL pass; the rest does not."""
        for command in ("/usr/bin/apt", "ALL", "/usr/bin/systemctl restart nginx", "/bin/*", "/bin/echo hi!"):
            self.assertEqual(command_problem(command), "", command)
        for command in ("apt", "/usr/bin/../sbin/su", "SUDOEDIT", "sudoedit /etc/hosts", "/bin/ls\0", "/a\nb", "all"):
            self.assertNotEqual(command_problem(command), "", command)

    def test_digest(self) -> None:
        """A command with a digest before it is no path."""
        self.assertEqual(command_problem("sha256:abcd /bin/ls"), "sudo_relative_command")

    def test_sudoedit_by_path(self) -> None:
        """sudo takes /usr/bin/sudoedit for sudoedit, so it is none of the commands either."""
        self.assertEqual(command_problem("/usr/bin/sudoedit /etc/hosts"), "sudo_sudoedit")
        self.assertEqual(command_problem("/usr/bin/sudoedit2"), "")

    def test_invalid_dropped(self) -> None:
        """What is not valid is left out by itself, and told."""
        checked = check(rule(commands="/bin/ls, apt,,/bin/cat"), "false")
        assert checked.grant is not None
        self.assertEqual(checked.grant.commands, ("/bin/ls", "/bin/cat"))
        self.assertEqual(told(checked), [("commands", "apt", "sudo_relative_command", False)])

    def test_none(self) -> None:
        """Without a command there is no rule."""
        self.assertEqual(refused(commands="apt, "), ["sudo_no_commands"])

    def test_numbered(self) -> None:
        """Numbered commands are one command each, commas included, in the order of the numbers."""
        made = rule_of_claims(
            "ops", (("sudoCommands10", "/c"), ("sudoCommands2", "/bin/chown a,b /srv"), ("sudoCommands", "/a,/b"))
        )
        assert made is not None
        grant = check(made, "false").grant
        assert grant is not None
        self.assertEqual(grant.commands, ("/a", "/b", "/bin/chown a,b /srv", "/c"))

    def test_numbers_of_any_length(self) -> None:
        """A number may have more digits than Python reads, and then the command still counts."""
        for number in ("12345", "0" * 9 + "7", "9" * 5000):
            made = rule_of_claims("ops", (("sudoCommands1", "/a"), (f"sudoCommands{number}", "/b")))
            assert made is not None
            self.assertEqual(made.more_commands, ("/a", "/b"))

    def test_rest_of_command(self) -> None:
        """What may be the end of the command before it refuses the rule: without it more would be allowed."""
        for commands in (
            "/bin/kill ,x",
            "/bin/kill\t,x",
            "/bin/kill , ,x,ALL",
            "/bin/cat /srv/*,x",
            "/usr/bin/less /var/log/a\\,b",
            '/bin/ls "",x',
            "ALL,/bin/chown a,b /srv",
        ):
            self.assertEqual(refused(commands=commands), ["sudo_split_command"], commands)
        for commands in (
            "/bin/ls,x",
            "/bin/ls, x,",
            "/bin/ls /a , /bin/cat",
            "/bin/ls /a,ALL",
            "/bin/kill ,",
            "ALL ,x",
        ):
            self.assertEqual([v for v in check(rule(commands=commands), "false").verdicts if v.refuses], [], commands)

    def test_too_long(self) -> None:
        """A longer item than any path is left out, and shown by its beginning."""
        longest, longer = "/" + "a" * (ITEM_LENGTH - 1), "/" + "b" * ITEM_LENGTH
        made = SudoRule(group="ops", commands=f"{longest},{longer}", more_commands=(longest + " ", longer))
        checked = check(made, "false")
        assert checked.grant is not None
        self.assertEqual(checked.grant.commands, (longest,))
        self.assertEqual(told(checked), [("commands", "/" + "b" * 63 + "...", "sudo_too_long", False)] * 2)

    def test_numbered_alone(self) -> None:
        """They need no list beside them."""
        made = rule_of_claims("ops", (("sudoCommands1", "/bin/ls"),))
        assert made is not None
        self.assertIsNotNone(check(made, "false").grant)


class NegationTests(SynchronousTestCase):
    def test_everywhere(self) -> None:
        """A negation refuses the rule, in whatever list and place, and however it is dressed."""
        for field in ("commands", "hosts", "run_as_user", "run_as_group"):
            for item in ("!x", "! /bin/su", "\t!/bin/su", '"!/bin/su"', "\\!/bin/su", "(!x", "\u200b!x", "！x", "!!x"):
                for text in (item, f"ALL,{item}", f"{item},ALL", f"/bin/ls, {item} ,x"):
                    self.assertIn("sudo_negated", refused(**{field: text}), (field, text))

    def test_in_disguise(self) -> None:
        """So does whatever is left out with the sign in it: behind tags, run-as lists, letters, dots."""
        for item in (
            "NOEXEC: !/bin/su", "(root) !/bin/su", "NOPASSWD:!/bin/su", "root=!/bin/su", "a!/bin/su", "/bin/../!su",
            "\ufe57/bin/su", "\uff01/bin/su", "\u203c/bin/su", "\u2757/bin/su", "sha512:a b==!/bin/su", "ALL !/bin/su",
            "/bin/ls\n!/bin/su", "/bin/sudoedit !x", "/" + "a" * ITEM_LENGTH + "!",
        ):  # fmt: skip
            for text in (f"ALL,{item}", f"{item},ALL"):
                self.assertEqual(refused(commands=text), ["sudo_negated"], text[:80])
            self.assertEqual(refused(commands="ALL", more_commands=(item,)), ["sudo_negated"], item[:80])  # type: ignore[arg-type]
        for field in ("hosts", "run_as_user", "run_as_group"):
            for item in ("a!b", "\ufe57x", "x\u2048", "a" * 5000 + "!"):
                self.assertIn("sudo_negated", refused(**{field: f"ALL,{item}"}), (field, item[:80]))

    def test_every_sign(self) -> None:
        """Every character that Unicode's compatible forms make a sign of is one."""
        missed = [n for n in range(0x110000) if "!" in unicodedata.normalize("NFKC", chr(n)) and not negates(chr(n))]
        self.assertEqual(missed, [])

    def test_with_digest(self) -> None:
        """Behind a digest too."""
        self.assertIn("sudo_negated", refused(commands="ALL, sha256:abc= !/bin/su"))

    def test_inside_names(self) -> None:
        """No host or user has the sign, so that it is a negation anywhere in one."""
        self.assertIn("sudo_negated", refused(hosts="web1,%!ops"))

    def test_arguments(self) -> None:
        """A command's arguments may have it."""
        for command in ("/bin/test ! -e /x", "/usr/bin/find / ! -name x", "/bin/sh !/bin/su"):
            self.assertEqual(granted(commands=command).commands, (command,))
            numbered = check(SudoRule(group="ops", more_commands=(command, "/bin/find a,b ! -name x")), "false").grant
            assert numbered is not None
            self.assertEqual(numbered.commands, (command, "/bin/find a,b ! -name x"))

    def test_numbered(self) -> None:
        """A numbered command that begins with one, or holds a list with one."""
        for command in ("!/bin/su", " ! /bin/su", "/bin/ls,!/bin/su", "/bin/ls , ! ALL"):
            made = SudoRule(group="ops", commands="ALL", more_commands=(command,))
            self.assertIsNone(check(made, "false").grant, command)

    def test_past_the_limit(self) -> None:
        """The limit of items does not hide it."""
        made = rule(commands=",".join(["/bin/ls"] * 600 + ["!/bin/su"]))
        self.assertIsNone(check(made, "false", 500).grant)
        full = ",".join(f"/bin/{n}" for n in range(500))
        made = SudoRule(group="ops", commands=full, more_commands=("/bin/x", "/bin/y", "!/bin/su"))
        self.assertEqual(
            told(check(made, "false", 500)),
            [("commands", "/bin/x", "sudo_too_many", False), ("commands", "!/bin/su", "sudo_negated", True)],
        )
        kept = check(rule(commands=full + ",/bin/test ! -e /x"), "false", 500)
        self.assertEqual([verdict.key for verdict in kept.verdicts], ["sudo_too_many"])

    def test_hostile_texts(self) -> None:
        """Texts of megabytes are judged in one pass; in any other way this would take hours."""
        size = 1 << 20
        for text in (
            "(" * size, "!" * size, " !" * size, "\\" * size + "x", "sha256:" * size, "sha256: " * size + "!",
            ", " * size,
            "/bin/ls " + "!" * size, "/bin/ls" + " " * size + "x", "/sudoedit" * size, '"' * size,
        ):  # fmt: skip
            for field in ("commands", "hosts", "run_as_user", "run_as_group", "options"):
                check(rule(**{field: text}), "claims")
            check(SudoRule(group="ops", more_commands=(text, "/bin/ls," + text, "/bin/ls ," + text + "/")), "false")
        near = ITEM_LENGTH - 10
        for piece in ("(", "!", ", ", ",!", " !", "\u203c", "sha256:"):
            more = ("/bin/ls," + (piece * near)[:near],) * 500
            check(SudoRule(group="ops", commands="ALL", more_commands=more), "false")

    def test_nul_before(self) -> None:
        """NUL is removed from claims before they are read."""
        made = rule_of_claims("ops", (("sudo\0Commands", "ALL,\0!/bin/su"),))
        assert made is not None
        self.assertIsNone(check(made, "false").grant)

    @given(
        st.sampled_from(["commands", "hosts", "run_as_user", "run_as_group"]),
        st.lists(st.sampled_from(["ALL", "/bin/ls", "web1", "root", " "]), max_size=4),
        st.text(" \t\"'\\(", max_size=3),
        st.text(max_size=5),
        st.integers(0, 4),
    )
    @example("commands", [], "", ",", 0)
    def test_any(self, field: str, items: list[str], dress: str, rest: str, place: int) -> None:
        """An item that begins with the sign never lets a rule be served."""
        items.insert(place, f"{dress}!{rest}")
        self.assertIsNone(check(rule(**{field: ",".join(items)}), "claims").grant)


class HostTests(SynchronousTestCase):
    def test_vector(self) -> None:
        """Only what is a name is left; nothing left is no rule, not every host."""
        self.assertEqual(granted(hosts="good-host,bad host,evil;rm -rf /").hosts, ("good-host",))
        self.assertEqual(refused(hosts="bad host,evil;x"), ["sudo_no_hosts"])
        self.assertEqual(refused(hosts=" , ,"), ["sudo_no_hosts"])

    def test_default(self) -> None:
        """No hosts written means every host."""
        self.assertEqual(granted(hosts=" ").hosts, ("ALL",))

    def test_forms(self) -> None:
        """Addresses, networks and netgroups; no wildcards, masks of names, or scopes."""
        for host in ("10.0.0.5", "10.0.0.0/24", "10.0.0.0/255.255.255.0", "fe80::1", "fe80::/64", "+web-hosts", "ALL"):
            self.assertEqual(host_problem(host), "", host)
        for host in ("web*", "web1/24", "+", "++x", "fe80::1%eth0", "10.0.0.0/33", "web[12]", "%ops", "#0", "::/129"):
            self.assertEqual(host_problem(host), "sudo_bad_host", host)

    def test_networks_as_asked(self) -> None:
        """Networks are served as sssd asks for them: by their own address, and with a length."""
        self.assertEqual(
            granted(hosts="10.0.0.5/24, 10.1.0.0/255.255.0.0, FE80:0::1, 10.0.0.0/24").hosts,
            ("10.0.0.0/24", "10.1.0.0/16", "fe80::1"),
        )


class RunAsTests(SynchronousTestCase):
    def test_users(self) -> None:
        """Root unless said otherwise; nobody valid is no rule."""
        self.assertEqual(granted().run_as_users, ("root",))
        self.assertEqual(granted(run_as_user="deploy,#0,%wheel").run_as_users, ("deploy",))
        self.assertEqual(refused(run_as_user="%wheel"), ["sudo_no_run_as_users"])

    def test_groups(self) -> None:
        """Invalid groups are left out; without any the rule stays."""
        self.assertEqual(granted(run_as_group="ops,Bad").run_as_groups, ("ops",))
        self.assertEqual(granted(run_as_group="Bad").run_as_groups, ())
        self.assertEqual(granted(run_as_group="wheel").run_as_groups, ("wheel",))


class OptionTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """The options that deployed rules have, and those that were always refused."""
        for option in ("NOPASSWD", "LOG_INPUT", "noexec", "log_output", "insults", "!setenv", "umask=077"):
            self.assertTrue(option_allowed(option), option)
        for option in ("setenv", "!env_reset", "env_keep+=LD_PRELOAD", '"env_keep += PATH"', "secure_path=/usr/bin"):
            self.assertFalse(option_allowed(option), option)

    def test_every_deployed_refusal(self) -> None:
        """What the deployed servers blocked is blocked, in any case and with spaces or quotes."""
        blocked = (
            "!env_reset setenv !requiretty !env_check !env_delete !log_output !log_input !noexec !use_pty !closefrom "
            "!authenticate authenticate !syslog !pam_session rootpw targetpw runaspw visiblepw shell_noargs "
            "env_keep+=ld_preload env_keep+=home secure_path=/x mailerpath=/x logfile=/x lecture_file=/x "
            "timestamp_timeout=-1 env_check+=x env_delete+=x"
        ).split()
        for option in blocked:
            for form in (option, option.upper(), f'"{option}"', option.replace("!", "! "), option.replace("=", " = ")):
                self.assertFalse(option_allowed(form), form)

    def test_ways_around(self) -> None:
        """Nothing that widens the grant, skips the approval or hides the record."""
        for option in (
            "exempt_group=ops pam_service=none pam_login_service=x pam_askpass_service=x env_keep=PATH env_keep-=x "
            "env_file=/x restricted_env_file=/x !env_keep verifypw=never listpw=never timestamp_type=global "
            "timestampdir=/x timestampowner=x !tty_tickets runas_default=x passwd_tries=0 fast_glob sudoedit_follow "
            "!sudoedit_checkdir !pam_acct_mgmt !pam_setcred !ignore_dot preserve_groups stay_setuid group_plugin=x "
            "intercept_allow_setid !intercept !intercept_authenticate closefrom_override closefrom=99 umask_override "
            "umask=0 umask=0777 command_timeout=0 user_command_timeouts ignore_local_sudoers mailto=x log_servers=x "
            "iolog_dir=/ iolog_file=x log_passwords noninteractive_auth EXEMPT_GROUP SETENV editor=/x !!setenv "
            "runchroot=/ runcwd=* role=x type=x !log_allowed !log_denied !mail_always fdexec=never syslog=local0 "
            "nothing_known =x ! unlimited"
        ).split():
            self.assertFalse(option_allowed(option), option)

    def test_lost_confinement(self) -> None:
        """An option that confines, but may not be set, refuses the rule: without it the command could do more."""
        for option in ("runchroot=/srv", "runcwd=/srv", "role=user_r", "TYPE = x", "command_timeout=0", "noexec=1"):
            self.assertEqual(refused(options=f"insults,{option}"), ["sudo_option_confines"], option)
        self.assertEqual(granted(options="!noexec,!runchroot").options, ())

    def test_lost_tags(self) -> None:
        """A tag of sudoers files that confines has no effect as an option, so that it refuses the rule."""
        for option in ("NOEXEC", "NOSETENV", "NOFOLLOW", "INTERCEPT"):
            self.assertEqual(refused(options=f"insults,{option}"), ["sudo_option_tag"], option)
            for form in (option.lower().title(), f"{option}:", f"'{option}'", f"({option}", "\u200b" + option):
                self.assertEqual(refused(options=form), ["sudo_option_confines"], form)
        for form in ("no exec", "NO EXEC :", '" run_cwd=/'.replace("_", "")):
            self.assertEqual(refused(options=form), ["sudo_option_confines"], form)

    def test_messages(self) -> None:
        """Texts for the person, on one line."""
        self.assertTrue(option_allowed('badpass_message="Try again"'))
        self.assertFalse(option_allowed("badpass_message=a\x1b[2J"))
        self.assertFalse(option_allowed("passprompt=" + "x" * 300))

    def test_modes(self) -> None:
        """``!authenticate`` is the setting's: never, always first, or as written."""
        made = rule(options="noexec, ! Authenticate,authenticate")
        options = {}
        for mode in ("false", "true", "claims"):
            grant = check(made, mode).grant  # type: ignore[arg-type]
            assert grant is not None
            options[mode] = grant.options
        self.assertEqual(
            options,
            {
                "false": ("noexec",),
                "true": ("!authenticate", "noexec"),
                "claims": ("noexec", "! Authenticate", "authenticate"),
            },
        )

    def test_disguised_authentication(self) -> None:
        """Forms that are no plain word are no way to it in any mode."""
        for option in ("!\tauthenticate", '"!authenticate"', "!!!authenticate", "!authenticate=x", "authenticate!"):
            for mode in ("false", "claims"):
                grant = check(rule(options=option), mode).grant  # type: ignore[arg-type]
                assert grant is not None
                self.assertEqual(grant.options, (), (option, mode))

    @given(st.text())
    def test_false_never_skips(self, text: str) -> None:
        """In mode false no text whatever makes an option that sudo could read as ``!authenticate``."""
        grant = check(rule(options=text + ",!authenticate," + text), "false").grant
        for option in grant.options if grant else ():
            self.assertNotIn("authenticate", "".join(option.lower().split()).replace("intercept_authenticate", ""))


class OrderAndTimeTests(SynchronousTestCase):
    def test_order(self) -> None:
        """A whole number, or the position; nonsense refuses the rule, as order decides whose options hold."""
        self.assertEqual((granted(order=" 7 ").order, granted().order), (7, None))
        for text in ("-1", "x", "1.5", "1" * 10, "٣"):
            self.assertEqual(refused(order=text), ["sudo_bad_order"], text)

    def test_times(self) -> None:
        """GeneralizedTime or RFC 3339, in UTC on the wire."""
        for text, expected in (
            ("20260131180000Z", "20260131180000Z"),
            ("202601311800Z", "20260131180000Z"),
            ("20260131180000.0Z", "20260131180000Z"),
            ("20260131180000+0130", "20260131163000Z"),
            ("2026-01-31T18:00:00Z", "20260131180000Z"),
            ("2026-01-31 18:00-05:00", "20260131230000Z"),
        ):
            self.assertEqual(generalized_time(text), expected)

    def test_bad_times(self) -> None:
        """Anything else refuses the rule: without its limit it would hold for ever."""
        for text in (
            "2026-01-31", "20260131", "tomorrow", "2026-02-30T00:00:00Z", "2026-01-31T18:00:00", "20260131246000Z",
            "00010101000000+1400", "2026-01-31T18:00:00.5Z", "20260131180000+1560",
        ):  # fmt: skip
            self.assertEqual(refused(not_after=text), ["sudo_bad_time"], text)

    def test_empty_interval(self) -> None:
        """A rule that ends before it begins is a mistake."""
        self.assertEqual(refused(not_before="202602010000Z", not_after="202601010000Z"), ["sudo_never_valid"])

    def test_description(self) -> None:
        """One line of text, else left out."""
        self.assertEqual(granted(description=" Web team ").description, "Web team")
        self.assertEqual(granted(description="a\nb").description, "")


class ClaimTests(SynchronousTestCase):
    def test_no_rule(self) -> None:
        """Other claims, and refinements alone, make no rule."""
        self.assertIsNone(rule_of_claims("ops", (("accessHosts", "web1"), ("sudoOrder", "1"), ("sudoHosts", " "))))

    def test_looks_like_ours(self) -> None:
        """A key that somebody took for one of ours refuses the rule; without it the rule would allow more."""
        for key in (
            "SudoHosts", "sudonotafter", "sudoHosts ", " sudoHosts", "sudo-hosts", "sudoHosts\u200b", "SUDO_ORDER",
            "sudoCommand", "sudoCommands\uff11", "sudoCommandsX", "\uff53udoHosts", "sudo", "sudoHost",
        ):  # fmt: skip
            made = rule_of_claims("ops", (("sudoCommands", "ALL"), (key, "x")))
            assert made is not None
            checked = check(made, "false", 500)
            self.assertEqual(told(checked), [("unknown_claims", key, "sudo_unknown_claim", True)])
            self.assertIsNone(checked.grant)
        others = (
            ("accessHosts", "web1"),
            ("pseudo", "x"),
            ("SudoHosts", " "),
            ("sud", "o"),
            ("", "x"),
            ("sudoOrder", ""),
        )
        made = rule_of_claims("ops", (("sudoCommands", "ALL"), *others))
        assert made is not None
        self.assertEqual(check(made, "false", 500).verdicts, ())

    def test_last_wins(self) -> None:
        """The last of several claims of one key counts."""
        made = rule_of_claims("ops", (("sudoCommands", "/a"), ("sudoCommands", "/b")))
        assert made is not None
        self.assertEqual(made.commands, "/b")

    def test_item_limit(self) -> None:
        """Claims have 500 items; options past it refuse the rule, as they may confine."""
        checked = check(rule(commands=",".join(f"/bin/{n}" for n in range(501))), "false", 500)
        assert checked.grant is not None
        self.assertEqual(len(checked.grant.commands), 500)
        self.assertEqual(told(checked), [("commands", "/bin/500", "sudo_too_many", False)])
        self.assertIsNone(check(rule(options=",".join(["insults"] * 500 + ["noexec"])), "false", 500).grant)


class FormTests(SynchronousTestCase):
    def test_good(self) -> None:
        """A good rule has nothing to tell."""
        self.assertEqual(check_rule({"group": "ops", "commands": "/bin/ls", "hosts": ""}), [])

    def test_fields(self) -> None:
        """Each problem is told at its field, and has a sentence."""
        verdicts = check_rule(
            {
                "group": "wheel",
                "commands": "ls,!/bin/su",
                "commands1": "cat",
                "hosts": "a b",
                "run_as_user": "%x",
                "run_as_group": "X",
                "options": "setenv,!authenticate",
                "order": "x",
                "not_before": "x",
                "description": "\n\x01",
            }
        )
        self.assertEqual(
            {verdict.field for verdict in verdicts},
            {"group", "commands", "hosts", "run_as_user", "run_as_group", "options", "order", "not_before",
             "description"},
        )  # fmt: skip
        for verdict in verdicts:
            self.assertIn(verdict.key, VERDICT_MESSAGES)
            self.assertNotIn("{", verdict.text())

    def test_group(self) -> None:
        """Names that are never served are told."""
        keys = {name: [v.key for v in check_rule({"group": name, "commands": "ALL"})] for name in ("defaults", "Ops")}
        self.assertEqual(keys, {"defaults": ["sudo_defaults_group"], "Ops": ["sudo_bad_group"]})


class EntryTests(SynchronousTestCase):
    def test_vector(self) -> None:
        """The full-mode example of the specification."""
        made = rule_of_claims(
            "ops",
            (
                ("sudoCommands", "/usr/bin/apt,/usr/bin/systemctl,bad-rel,/usr/bin/../sbin/su"),
                ("sudoHosts", "web1,web2"),
                ("sudoRunAsUser", "root,deploy"),
                ("sudoOptions", "NOPASSWD,setenv,!authenticate"),
            ),
        )
        assert made is not None
        grant = check(made, "claims").grant
        assert grant is not None
        draft = role_draft(LAYOUT, "k", "ops", (b"alice", b"bob"), grant, 1)
        assert draft is not None
        self.assertEqual(draft.dn, "cn=ops,ou=sudoers,dc=example,dc=com")
        self.assertEqual(
            attributes(draft),
            {
                "objectClass": ["top", "sudoRole"],
                "cn": ["ops"],
                "sudoUser": ["alice", "bob"],
                "sudoHost": ["web1", "web2"],
                "sudoCommand": ["/usr/bin/apt", "/usr/bin/systemctl"],
                "sudoRunAsUser": ["root", "deploy"],
                "sudoOption": ["NOPASSWD", "!authenticate"],
                "sudoOrder": ["1"],
            },
        )

    def test_optional(self) -> None:
        """What is optional appears when set; an own order goes before the position."""
        grant = granted(
            run_as_group="ops", order="9", not_before="202601010000Z", not_after="202701010000Z", description="x"
        )
        draft = role_draft(LAYOUT, "k", "ops", (b"alice",), grant, 1)
        assert draft is not None
        found = attributes(draft)
        self.assertEqual(
            {name: found[name] for name in list(found)[-5:]},
            {
                "sudoRunAsGroup": ["ops"],
                "sudoOrder": ["9"],
                "sudoNotBefore": ["20260101000000Z"],
                "sudoNotAfter": ["20270101000000Z"],
                "description": ["x"],
            },
        )

    def test_names_only(self) -> None:
        """What sudo takes for everybody, a group, a number, a netgroup or a negation is no account's name."""
        bad = (b"ALL", b"All", b"all", b"%ops", b"%", b"#0", b"+net", b"!bob")
        for user in bad:
            self.assertIsNone(role_draft(LAYOUT, "k", "wheel", (user,), granted(), 1), user)
        draft = role_draft(LAYOUT, "k", "ops", (b"alice", *bad, b"small"), granted(), 1)
        assert draft is not None
        self.assertEqual(attributes(draft)["sudoUser"], ["alice", "small"])

    def test_group_of_its_own(self) -> None:
        """The rule of a file is for the group of its name, and for no other."""
        draft = role_draft(LAYOUT, "k", "ops", (b"%ops",), granted(), 1)
        assert draft is not None
        self.assertEqual(attributes(draft)["sudoUser"], ["%ops"])
        self.assertIsNone(role_draft(LAYOUT, "k", "ops", (b"%wheel",), granted(), 1))
