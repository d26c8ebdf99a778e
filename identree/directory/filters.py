"""
Search filters: their parts, their three-valued meaning, and their text (RFC 4511 section 4.5.1.7, RFC 4515).

A filter is compiled for entries of one shape, that is with the same attributes and object classes. Most of what sssd
asks is decided by the shape alone; what is left are a few comparisons of values.

Undefined (None) is the outcome of an attribute that the schema does not know, of an assertion that does not fit its
matching rule, and of a match that its type does not define. An attribute that is known and absent is no match: False.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from . import dn, schema
from .schema import AttributeType, Rule

E_contra = TypeVar("E_contra", contravariant=True)
E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class And:
    """Of no parts: True (RFC 4526)."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Of no parts: False (RFC 4526)."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


@dataclass(frozen=True, slots=True)
class Equal:
    attribute: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Present:
    attribute: str


@dataclass(frozen=True, slots=True)
class Substrings:
    attribute: str
    initial: bytes | None
    middle: tuple[bytes, ...]
    final: bytes | None


@dataclass(frozen=True, slots=True)
class GreaterOrEqual:
    attribute: str
    value: bytes


@dataclass(frozen=True, slots=True)
class LessOrEqual:
    attribute: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Approx:
    """The same as equality (spec/ldap section 14.18)."""

    attribute: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Extensible:
    """
    :ivar rule: None: the attribute's own equality rule.
    :ivar attribute: None: every attribute that the rule fits.
    :ivar dn_attributes: the parts of the entry's DN count as its attributes.
    """

    rule: str | None
    attribute: str | None
    value: bytes
    dn_attributes: bool


Filter = And | Or | Not | Equal | Present | Substrings | GreaterOrEqual | LessOrEqual | Approx | Extensible


def terms(filter: Filter) -> int:
    """How many parts a filter has, itself included."""
    if isinstance(filter, (And, Or)):
        return 1 + sum(map(terms, filter.parts))
    return 1 + terms(filter.part) if isinstance(filter, Not) else 1


Verdict = bool | None
Test = Callable[[E], Verdict]
Values = Callable[[E], Sequence[bytes]]


class Shape(Protocol[E_contra]):
    """What entries of one kind have in common."""

    @property
    def types(self) -> Sequence[AttributeType]:
        """Every attribute that these entries have."""

    @property
    def classes(self) -> frozenset[bytes]:
        """Their object classes, normalised, superclasses included."""

    def reader(self, type_: AttributeType) -> Callable[[E_contra], Sequence[bytes]] | None:
        """Reads the values of an attribute; None: these entries do not have it."""

    def dn(self, entry: E_contra) -> str:
        """The entry's DN."""


def compile(filter: Filter, shape: Shape[E]) -> Verdict | Test[E]:
    """
    The meaning of a filter for entries of a shape: a constant, or what is left to ask each of them.
    """
    if isinstance(filter, And):
        return _join([compile(part, shape) for part in filter.parts], absorbing=False)
    if isinstance(filter, Or):
        return _join(_alternatives(filter.parts, shape), absorbing=True)
    if isinstance(filter, Not):
        return _negation(compile(filter.part, shape))
    if isinstance(filter, Extensible):
        return _extensible(filter, shape)
    types = schema.known(filter.attribute)
    if types is None:
        return None
    if len(types) == 1:
        return _item(filter, types[0], shape)
    return _join([_item(filter, type_, shape) for type_ in types], absorbing=True)


def _join(parts: Iterable[Verdict | Test[E]], absorbing: bool) -> Verdict | Test[E]:
    """Conjunction (``absorbing`` False) or disjunction (True) of three-valued parts."""
    rest: Verdict = not absorbing
    tests: list[Test[E]] = []
    for part in parts:
        if callable(part):
            tests.append(part)
        elif part is absorbing:
            return absorbing
        elif part is None:
            rest = None
    if not tests:
        return rest
    if len(tests) == 1 and rest is not None:
        return tests[0]
    all_tests = tuple(tests)

    def test(entry: E) -> Verdict:
        outcome = rest
        for each in all_tests:
            verdict = each(entry)
            if verdict is absorbing:
                return absorbing
            if verdict is None:
                outcome = None
        return outcome

    return test


def _negation(part: Verdict | Test[E]) -> Verdict | Test[E]:
    if part is None:
        return None
    if not callable(part):
        return not part
    inner = part

    def test(entry: E) -> Verdict:
        verdict = inner(entry)
        return None if verdict is None else not verdict

    return test


def _alternatives(parts: tuple[Filter, ...], shape: Shape[E]) -> list[Verdict | Test[E]]:
    """The parts of an Or; equalities of one attribute become one look into a set, and that comes first."""
    wanted: dict[str, set[bytes]] = {}
    found: list[Verdict | Test[E]] = []
    for part in parts:
        if isinstance(part, Equal):
            types = schema.known(part.attribute)
            if types is not None and len(types) == 1 and types[0].key != "objectclass":
                value = types[0].normalise(part.value)
                if value is None:
                    found.append(None)
                else:
                    wanted.setdefault(types[0].key, set()).add(value)
                continue
        found.append(compile(part, shape))
    return [*(_any_of(schema.BY_NAME[key], frozenset(values), shape) for key, values in wanted.items()), *found]


def _any_of(type_: AttributeType, wanted: frozenset[bytes], shape: Shape[E]) -> Verdict | Test[E]:
    read = shape.reader(type_)
    if read is None:
        return False
    reader, normalise = read, type_.normalise

    def test(entry: E) -> Verdict:
        for value in reader(entry):  # noqa: SIM110  # any() would make a generator for mostly one value
            if value in wanted or normalise(value) in wanted:
                return True
        return False

    return test


_Item = Equal | Present | Substrings | GreaterOrEqual | LessOrEqual | Approx


def _item(filter: _Item, type_: AttributeType, shape: Shape[E]) -> Verdict | Test[E]:
    read = shape.reader(type_)
    if isinstance(filter, Present):
        return read is not None
    if isinstance(filter, Substrings):
        return _substrings(filter, type_, read)
    if isinstance(filter, (Equal, Approx)):
        wanted = type_.normalise(filter.value)
        if wanted is None:
            return None
        if type_.key == "objectclass":
            return wanted in shape.classes
        return False if read is None else _equality(type_, wanted, read)
    order = type_.order
    if order is None:
        return None
    asked = type_.normalise(filter.value)
    if asked is None:
        return None
    if read is None:
        return False
    return _ordering(type_, order(asked), read, isinstance(filter, GreaterOrEqual))


def _equality(type_: AttributeType, wanted: bytes, read: Values[E]) -> Test[E]:
    normalise = type_.normalise

    def test(entry: E) -> Verdict:
        for value in read(entry):  # noqa: SIM110  # see above
            if value == wanted or normalise(value) == wanted:
                return True
        return False

    return test


def _ordering(type_: AttributeType, asked: object, read: Values[E], greater: bool) -> Test[E]:
    order, normalise = type_.order, type_.normalise
    assert order is not None
    key = order

    def test(entry: E) -> Verdict:
        for value in read(entry):
            normal = normalise(value)
            if normal is not None:
                own = key(normal)
                if own == asked or (own > asked) is greater:
                    return True
        return False

    return test


def _substrings(filter: Substrings, type_: AttributeType, read: Values[E] | None) -> Verdict | Test[E]:
    if type_.substrings is None:
        return None
    parts = _prepared(filter, type_)
    if parts is None:
        return None
    if read is None:
        return False
    reader, normalise = read, type_.normalise
    initial, middle, final = parts

    if not middle and not final:

        def begins(entry: E) -> Verdict:
            for value in reader(entry):
                normal = normalise(value)
                if normal is not None and normal.startswith(initial):
                    return True
            return False

        return begins

    def test(entry: E) -> Verdict:
        for value in reader(entry):
            normal = normalise(value)
            if normal is not None and _matches(normal, initial, middle, final):
                return True
        return False

    return test


def _prepared(filter: Substrings, type_: AttributeType) -> tuple[bytes, tuple[bytes, ...], bytes] | None:
    """
    The substrings as values are compared; None if one does not fit.

    Spaces at the inner ends of a substring are meant (RFC 4518 section 2.6.1), so each is normalised between two
    letters, which are taken off again.
    """

    def prepare(part: bytes, first: bool = False, last: bool = False) -> bytes | None:
        normal = type_.normalise((b"" if first else b"a") + part + (b"" if last else b"a"))
        if normal is None:
            return b"" if first or last else None
        return normal[0 if first else 1 : len(normal) if last else -1]

    initial = b"" if filter.initial is None else prepare(filter.initial, first=True)
    final = b"" if filter.final is None else prepare(filter.final, last=True)
    middle = [prepare(part) for part in filter.middle]
    if initial is None or final is None:
        return None
    found = tuple(part for part in middle if part is not None)
    return (initial, found, final) if len(found) == len(middle) else None


def _matches(value: bytes, initial: bytes, middle: tuple[bytes, ...], final: bytes) -> bool:
    if len(value) < len(initial) + len(final) or not (value.startswith(initial) and value.endswith(final)):
        return False
    at, end = len(initial), len(value) - len(final)
    for part in middle:
        at = value.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _extensible(filter: Extensible, shape: Shape[E]) -> Verdict | Test[E]:
    rule: Rule | None = None
    if filter.rule is not None:
        rule = schema.RULES.get(filter.rule.lower())
        if rule is None:
            return None
    types: Sequence[AttributeType]
    if filter.attribute is not None:
        named = schema.known(filter.attribute)
        if named is None:
            return None
        types = named
        tests = [_with_rule(filter.value, rule, type_, shape) for type_ in types]
        if not tests:
            tests = [False]
    else:
        assert rule is not None
        if not _usable(rule) or (rule.normalise is not None and rule.normalise(filter.value) is None):
            return None
        types = [type_ for type_ in shape.types if _fits(rule, type_)]
        tests = [_with_rule(filter.value, rule, type_, shape) for type_ in types]
    if filter.dn_attributes:
        tests.append(_in_dn(filter, rule, shape))
    return _join(tests, absorbing=True)


def _usable(rule: Rule) -> bool:
    return rule.normalise is not None or rule.family == "bits"


def _fits(rule: Rule, type_: AttributeType) -> bool:
    family = "integer" if rule.family == "bits" else rule.family
    return type_.equality.family == family


def _with_rule(value: bytes, rule: Rule | None, type_: AttributeType, shape: Shape[E]) -> Verdict | Test[E]:
    if rule is None:
        return _item(Equal(type_.name, value), type_, shape)
    if not _usable(rule) or not _fits(rule, type_):
        return None
    read = shape.reader(type_)
    if rule.family == "bits":
        return _bits(value, read, rule.name == "integerBitAndMatch")
    normalise = rule.normalise
    assert normalise is not None
    wanted = normalise(value)
    if wanted is None:
        return None
    if type_.key == "objectclass":
        return wanted in shape.classes
    if read is None:
        return False
    reader, normal = read, normalise

    def test(entry: E) -> Verdict:
        return any(normal(own) == wanted for own in reader(entry))

    return test


def _bits(value: bytes, read: Values[E] | None, every: bool) -> Verdict | Test[E]:
    if schema.integer(value) is None:
        return None
    if read is None:
        return False
    mask, reader = int(value), read

    def test(entry: E) -> Verdict:
        for own in reader(entry):
            if schema.integer(own) is not None:
                common = int(own) & mask
                if common == mask if every else common:
                    return True
        return False

    return test


def _in_dn(filter: Extensible, rule: Rule | None, shape: Shape[E]) -> Verdict | Test[E]:
    """Whether a part of the DN matches, as ``(ou:dn:=people)`` asks."""
    names: frozenset[str] | None = None
    if filter.attribute is not None:
        names = frozenset(type_.key for type_ in schema.known(filter.attribute) or ())

    def test(entry: E) -> Verdict:
        for rdn in dn.parse(shape.dn(entry)).rdns:
            for name, value in rdn:
                type_ = schema.BY_NAME.get(name)
                if type_ is None or (names is not None and type_.key not in names):
                    continue
                applied = rule or type_.equality
                if applied.normalise is None or not _fits(applied, type_):
                    continue
                wanted = applied.normalise(filter.value)
                if wanted is not None and applied.normalise(value.encode()) == wanted:
                    return True
        return False

    return test


# --- text ------------------------------------------------------------------------------------------------------------

# Filters in text come from logs, tests and the command line; the bounds are those of the wire.
MAX_TEXT = 65536
MAX_DEPTH = 32

_OPERATORS: dict[str, type[Approx] | type[GreaterOrEqual] | type[LessOrEqual]] = {
    "~": Approx,
    ">": GreaterOrEqual,
    "<": LessOrEqual,
}
_HEX_PAIR = re.compile("[0-9a-fA-F]{2}", re.ASCII)


def to_text(filter: Filter) -> str:
    """RFC 4515, for logs and tests; values that are not printable ASCII are escaped."""
    if isinstance(filter, (And, Or)):
        return f"({'&' if isinstance(filter, And) else '|'}{''.join(map(to_text, filter.parts))})"
    if isinstance(filter, Not):
        return f"(!{to_text(filter.part)})"
    if isinstance(filter, Present):
        return f"({filter.attribute}=*)"
    if isinstance(filter, Substrings):
        parts = [filter.initial or b"", *filter.middle, filter.final or b""]
        return f"({filter.attribute}={'*'.join(map(_escaped, parts))})"
    if isinstance(filter, Extensible):
        name = (filter.attribute or "") + (":dn" if filter.dn_attributes else "")
        rule = f":{filter.rule}" if filter.rule is not None else ""
        return f"({name}{rule}:={_escaped(filter.value)})"
    operator = {Equal: "=", Approx: "~=", GreaterOrEqual: ">=", LessOrEqual: "<="}[type(filter)]
    return f"({filter.attribute}{operator}{_escaped(filter.value)})"


def _escaped(value: bytes) -> str:
    return "".join(chr(c) if 0x20 <= c < 0x7F and c not in b"\\*()" else f"\\{c:02x}" for c in value)


def parse_text(text: str) -> Filter:
    """
    RFC 4515.

    :raise ValueError: this is no filter; the message says where.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"the filter is longer than {MAX_TEXT} characters")
    found, at = _parse(text, 0, 0)
    if at != len(text):
        raise ValueError(f"the filter ends at character {at}, and more follows")
    return found


def _parse(text: str, at: int, depth: int) -> tuple[Filter, int]:
    if depth > MAX_DEPTH:
        raise ValueError(f"the filter is nested deeper than {MAX_DEPTH}")
    if text[at : at + 1] != "(":
        raise ValueError(f"an opening bracket is missing at character {at}")
    at += 1
    kind = text[at : at + 1]
    if kind in ("&", "|"):
        at += 1
        parts: list[Filter] = []
        while text[at : at + 1] == "(":
            part, at = _parse(text, at, depth + 1)
            parts.append(part)
        joined = tuple(parts)
        return (And(joined) if kind == "&" else Or(joined)), _closed(text, at)
    if kind == "!":
        part, at = _parse(text, at + 1, depth + 1)
        return Not(part), _closed(text, at)
    end = text.find(")", at)
    if end < 0:
        raise ValueError(f"a closing bracket is missing after character {at}")
    name, equals, value = text[at:end].partition("=")
    if not equals or "(" in name + value:
        raise ValueError(f"there is no comparison at character {at}")
    return _comparison(name, value, at), end + 1


def _closed(text: str, at: int) -> int:
    if text[at : at + 1] != ")":
        raise ValueError(f"a closing bracket is missing at character {at}")
    return at + 1


def _comparison(name: str, value: str, at: int) -> Filter:
    if name.endswith(":"):
        first, *rest = name[:-1].split(":")
        dn_attributes = bool(rest) and rest[0].lower() == "dn"
        rest = rest[1:] if dn_attributes else rest
        if len(rest) > 1 or not (first or rest):
            raise ValueError(f"the extensible match at character {at} is malformed")
        return Extensible(rest[0] if rest else None, first or None, _unescaped(value, at), dn_attributes)
    operator = _OPERATORS.get(name[-1:])
    bare = name[:-1] if operator else name
    if not bare or not bare.isprintable() or any(c in ' ()*:~<>"\\' for c in bare):
        raise ValueError(f"there is no attribute at character {at}")
    if operator is not None:
        return operator(bare, _unescaped(value, at))
    if value == "*":
        return Present(bare)
    parts = [_unescaped(part, at) for part in value.split("*")]
    if len(parts) == 1:
        return Equal(bare, parts[0])
    if not all(parts[1:-1]):
        raise ValueError(f"there is an empty substring at character {at}")
    return Substrings(bare, parts[0] or None, tuple(parts[1:-1]), parts[-1] or None)


def _unescaped(text: str, at: int) -> bytes:
    first, *rest = text.split("\\")
    raw = first.encode()
    for part in rest:
        if not _HEX_PAIR.match(part):
            raise ValueError(f"a backslash at or after character {at} has no two hexadecimal digits")
        raw += bytes.fromhex(part[:2]) + part[2:].encode()
    return raw
