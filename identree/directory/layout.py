"""What an operator decides about the shape of the tree; with the source and the numbers it determines every entry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from identree.directory.dn import parse

NoAuthenticate = Literal["false", "true", "claims"]
Schema = Literal["rfc2307", "rfc2307bis"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """
    :ivar base_dn: as the operator wrote it; case and spacing are kept in every DN that is sent.
    :ivar default_home: ``%s`` in it stands for the user name.
    :ivar sudo_no_authenticate: spec/ldap section 3.4.
    :ivar schema: how groups name members; ``rfc2307bis`` adds ``memberOf`` to people and object classes to groups.
    :ivar nested_groups: whether the claim ``memberGroups`` counts.
    """

    base_dn: str
    default_shell: str = "/bin/bash"
    default_home: str = "/home/%s"
    sudo_no_authenticate: NoAuthenticate = "false"
    schema: Schema = "rfc2307"
    nested_groups: bool = False

    # Names of people and groups have no character that RFC 4514 wants escaped (see eligibility), so none is here.

    @property
    def people_dn(self) -> str:
        return f"ou=people,{self.base_dn}"

    @property
    def groups_dn(self) -> str:
        return f"ou=groups,{self.base_dn}"

    @property
    def sudoers_dn(self) -> str:
        return f"ou=sudoers,{self.base_dn}"

    def first_rdn(self) -> tuple[tuple[str, str], ...]:
        """
        Types and values that name the base entry.

        :raise ValueError: the base DN is none, or empty.
        """
        dn = parse(self.base_dn)
        if not dn.rdns:
            raise ValueError("the base DN is empty")
        return dn.rdn
