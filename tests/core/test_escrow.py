"""Which vault a host belongs to, and what its item is called there."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from identree.core import escrow

VAULT = "https://vault.example:8200"


class PlaceTests(SynchronousTestCase):
    def place(self, hostname: str, vault_map: dict[str, str]) -> str:
        return escrow.place_of(hostname, vault_map, "path")

    def test_exact(self) -> None:
        """A host's own key comes before every pattern."""
        self.assertEqual(self.place("web-1", {"web*": "a", "web-1": "b", "default": "c"}), "b")

    def test_longest(self) -> None:
        """Of the patterns that fit the longest counts, wherever its star is."""
        patterns = {"w*": "a", "web*": "b", "*.example.com": "c", "*1": "d"}
        self.assertEqual(self.place("web1.example.com", patterns), "c")
        self.assertEqual(self.place("web1", patterns), "b")
        self.assertEqual(self.place("db1", patterns), "d")

    def test_equal_lengths(self) -> None:
        """Of equally long ones the first in sorted order, however the map was written."""
        self.assertEqual(self.place("ab", {"a*": "x", "*b": "y"}), "y")
        self.assertEqual(self.place("ab", {"*b": "y", "a*": "x"}), "y")

    def test_star_at_both_ends(self) -> None:
        """The star at the end makes it a prefix; the one at the beginning is a plain character, which no host has."""
        self.assertEqual(self.place("myweb1", {"*web*": "a"}), "path")

    def test_star_inside(self) -> None:
        """Inside a pattern a star means nothing."""
        self.assertEqual(self.place("web-1-prod", {"web*prod": "a"}), "path")

    def test_lone_star(self) -> None:
        """Fits every host, and comes before the default."""
        self.assertEqual(self.place("web1", {"*": "a", "default": "b"}), "a")

    def test_default(self) -> None:
        """Then the key default, then the path."""
        self.assertEqual(self.place("web1", {"db*": "a", "default": "b"}), "b")
        self.assertEqual(self.place("web1", {"db*": "a"}), "path")
        self.assertEqual(self.place("web1", {}), "path")

    def test_default_is_no_pattern(self) -> None:
        """The key default takes part in no comparison of lengths, and is no prefix."""
        self.assertEqual(self.place("d1", {"d*": "a", "default": "b"}), "a")
        self.assertEqual(self.place("defaultish", {"default*": "a", "default": "b"}), "a")

    def test_case(self) -> None:
        """Names come normalised, keys as somebody wrote them."""
        self.assertEqual(self.place("web1", {"WEB*": "a"}), "a")
        self.assertEqual(self.place("WEB1.", {"web1": "a"}), "a")


class NameTests(SynchronousTestCase):
    def test_escapes(self) -> None:
        """Both escapes leave exactly their characters."""
        self.assertEqual(escrow.path_escape("aZ9-_.~$&+:=@ /?#%é"), "aZ9-_.~$&+:=@%20%2F%3F%23%25%C3%A9")
        self.assertEqual(escrow.query_escape("aZ9-_.~ $&+/:"), "aZ9-_.~+%24%26%2B%2F%3A")

    def test_kv_path(self) -> None:
        """Mount, data, prefix, host; the prefix is one segment."""
        self.assertEqual(escrow.kv_path("secret", "web1"), "secret/data/web1")
        self.assertEqual(escrow.kv_path("secret/identree", "web1"), "secret/data/identree/web1")
        self.assertEqual(escrow.kv_path("/secret/a/b c/", "web1"), "secret/data/a%2Fb%20c/web1")

    def test_kv_path_refused(self) -> None:
        """No mount, and nothing that leads elsewhere."""
        for place, hostname in (
            ("", "a"),
            ("/", "a"),
            ("secret/..", "a"),
            ("secret/a/./b", "a"),
            ("s", ".."),
            ("s", "a/b"),
        ):
            with self.assertRaises(ValueError):
                escrow.kv_path(place, hostname)

    def test_kv_path_of_item(self) -> None:
        """The stored URL gives the path, also when the server has moved since."""
        path = "secret/data/a%2Fb/web1"
        self.assertEqual(escrow.kv_path_of_item(f"{VAULT}/v1/{path}", VAULT, "web1"), path)
        self.assertEqual(escrow.kv_path_of_item(f"https://old.example/v1/{path}", VAULT, "web1"), path)
        self.assertEqual(escrow.kv_path_of_item(f"{VAULT}/v1/secret/data/web1", f"{VAULT}", "web1"), "secret/data/web1")

    def test_kv_path_of_wrong_item(self) -> None:
        """What is no secret of this host is not asked for."""
        for item in (
            "",
            "web1",
            f"{VAULT}/v1/secret/data/web2",
            f"{VAULT}/v1/secret/metadata/web1",
            f"{VAULT}/v1/sys/web1",
            f"{VAULT}/v1/secret/data/%2E%2E/web1",
            f"{VAULT}/v1/secret/data/a%2F..%2Fb/web1",
            f"{VAULT}/v1/secret/data/a/b/web1",
            f"{VAULT}/v1/secret/data/a?x/web1",
            "https://[/v1/secret/data/web1",
        ):
            self.assertEqual(escrow.kv_path_of_item(item, VAULT, "web1"), "", item)

    def test_others(self) -> None:
        """Titles, ids, filters, names."""
        self.assertEqual(escrow.item_title("web-1"), "breakglass-web-1")
        self.assertEqual(escrow.infisical_name("web-1.Example.com"), "BREAKGLASS_WEB_1_EXAMPLE_COM")
        self.assertEqual(escrow.onepassword_filter('a"\\b'), "title+eq+%22a%5C%22%5C%5Cb%22")
        self.assertEqual(
            [escrow.is_onepassword_id(text) for text in ("a" * 19, "a" * 20, "A-9" * 12, "a" * 37, "a b" * 8)],
            [False, True, True, False, False],
        )
        self.assertEqual(escrow.token_key("web1", 5), "web1:5")

    def test_bitwarden_identity(self) -> None:
        """Of the service and of an own server."""
        self.assertEqual(escrow.bitwarden_identity("https://api.bitwarden.com"), "https://identity.bitwarden.com")
        self.assertEqual(escrow.bitwarden_identity("https://bw.example/api"), "https://bw.example/identity")
        self.assertEqual(escrow.bitwarden_identity("https://bw.example"), "https://bw.example/identity")

    def test_two_parts(self) -> None:
        """The second part may be missing."""
        self.assertEqual(escrow.two_parts("org/project/"), ("org", "project"))
        self.assertEqual(escrow.two_parts("org"), ("org", ""))


class CommandTests(SynchronousTestCase):
    def test_environment(self) -> None:
        """Three names, and what the prefixes let through; the three cannot be overridden, and no prefix is no key."""
        server = {
            "PATH": "/bin",
            "HOME": "/root",
            "AWS_KEY": "k",
            "IDENTREE_SHARED_SECRET": "s",
            "BREAKGLASS_HOSTNAME": "x",
        }
        self.assertEqual(
            escrow.command_environment(server, "web1", ("AWS_", "BREAK", "")),
            {"PATH": "/bin", "HOME": "/root", "AWS_KEY": "k", "BREAKGLASS_HOSTNAME": "web1"},
        )
        self.assertEqual(escrow.command_environment({"A": "b"}, "web1", ("",)), {"BREAKGLASS_HOSTNAME": "web1"})

    def test_item_id(self) -> None:
        """The first line that has one, after trimming; nothing that could not be stored."""
        self.assertEqual(escrow.item_id_in("hello\n  item_id= abc \nitem_id=def\n"), "abc")
        self.assertEqual(escrow.item_id_in("item_id=a\r\n"), "a")
        self.assertEqual(escrow.item_id_in("the item_id=abc"), "")
        self.assertEqual(escrow.item_id_in("item_id=a\0b"), "")
        self.assertEqual(escrow.item_id_in("item_id=" + "a" * 2049), "")


class LinkTests(SynchronousTestCase):
    def link(self, backend: str, url: str = VAULT, web_url: str = VAULT, place: str = "secret/a", **ids: str) -> str:
        return escrow.web_link(backend, url=url, web_url=web_url, place=place, hostname="web1", **ids)

    def test_links(self) -> None:
        """Each product's page of the password."""
        self.assertEqual(self.link("vault"), f"{VAULT}/ui/vault/secrets/secret/kv/a/web1/details")
        self.assertEqual(self.link("vault", place="secret"), f"{VAULT}/ui/vault/secrets/secret/kv/web1/details")
        self.assertEqual(
            self.link("vault", item_id=f"{VAULT}/v1/kv/data/b/web1"), f"{VAULT}/ui/vault/secrets/kv/kv/b/web1/details"
        )
        account = "https://my.1password.com/app#/ACC"
        self.assertEqual(
            self.link("1password-connect", web_url=account, item_id="i", vault_id="v"),
            "https://my.1password.com/app/Vault/ACC:v:i",
        )
        bitwarden = "https://api.bitwarden.com"
        self.assertEqual(
            self.link("bitwarden", url=bitwarden, place="org/p", item_id="i"),
            "https://vault.bitwarden.com/#/sm/org/secrets/i",
        )
        self.assertEqual(
            self.link("bitwarden", url="https://bw.example/api", place="org"), "https://bw.example/#/sm/org/secrets"
        )
        self.assertEqual(self.link("infisical", place="ws/dev"), f"{VAULT}/ws/secrets/dev")
        self.assertEqual(self.link("infisical", place="ws"), f"{VAULT}/ws/secrets")

    def test_none(self) -> None:
        """No addresses, no ids, no pages: no link."""
        self.assertEqual(self.link("vault", web_url=""), "")
        self.assertEqual(self.link("vault", web_url="javascript://x"), "")
        self.assertEqual(self.link("vault", url="ftp://x"), "")
        self.assertEqual(self.link("vault", place=""), "")
        self.assertEqual(self.link("1password-connect", item_id="i", vault_id="v"), "")
        self.assertEqual(self.link("1password-connect", web_url="https://x/#/A", item_id="i"), "")
        self.assertEqual(self.link("bitwarden", place=""), "")
        for backend in ("local", "command", ""):
            self.assertEqual(self.link(backend, item_id="i"), "")
