"""
Search filters: their parts, their three-valued meaning, and their text (RFC 4511 section 4.5.1.7, RFC 4515).

A filter is compiled for entries of one shape, that is with the same attributes and object classes. Most of what sssd
asks is decided by the shape alone; what is left are a few comparisons of values.

Undefined (None) is the outcome of an attribute that the schema does not know, of an assertion that does not fit its
matching rule, and of a match that its type does not define. An attribute that is known and absent is no match: False.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from . import dn, schema
from .schema import AttributeType, Rule

E_contra = TypeVar("E_contra", contravariant=True)
E = TypeVar("E")
T = TypeVar("T")


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


def dear(value: bytes) -> bool:
    """Whether a value may take up to half a microsecond per byte to normalise, and not next to nothing."""
    return (
        not value.isascii()
        or b"  " in value
        or b"\\" in value
        # a DN that is not its own normal form
        or (b"=" in value and (b"+" in value or b" " in value or value != value.lower()))
    )


def dear_bytes(filter: Filter) -> int:
    """Of assertion values that are :func:`dear`."""
    if isinstance(filter, (And, Or)):
        return sum(map(dear_bytes, filter.parts))
    if isinstance(filter, Not):
        return dear_bytes(filter.part)
    if isinstance(filter, Present):
        return 0
    if isinstance(filter, Substrings):
        parts = [filter.initial or b"", *filter.middle, filter.final or b""]
        return sum(len(part) for part in parts if dear(part))
    return len(filter.value) if dear(filter.value) else 0


Verdict = bool | None
Test = Callable[[E], Verdict]
Values = Callable[[E], Sequence[bytes]]


class Attributes(Protocol[E_contra]):
    """What can be read from entries of one kind, or from some of the values that an entry has."""

    @property
    def types(self) -> Sequence[AttributeType]:
        """Every attribute that these entries have."""

    @property
    def classes(self) -> frozenset[bytes]:
        """Their object classes, normalised, superclasses included."""

    def reader(self, type_: AttributeType) -> Callable[[E_contra], Sequence[bytes]] | None:
        """Reads the values of an attribute; None: these entries do not have it."""


class Shape(Attributes[E_contra], Protocol[E_contra]):
    """What entries of one kind have in common."""

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


def _open(parts: Iterable[Verdict | T], absorbing: bool) -> tuple[Verdict, list[T]]:
    """What constant parts of a conjunction (``absorbing`` False) or disjunction (True) come to, and the others."""
    rest: Verdict = not absorbing
    tests: list[T] = []
    for part in parts:
        if part is absorbing:
            return absorbing, []
        if part is None:
            rest = None
        elif not isinstance(part, bool):
            tests.append(part)
    return rest, tests


def _join(parts: Iterable[Verdict | Test[E]], absorbing: bool) -> Verdict | Test[E]:
    """Conjunction or disjunction of three-valued parts, see :func:`_open`."""
    rest, tests = _open(parts, absorbing)
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


def alternatives(parts: Sequence[Filter]) -> tuple[dict[AttributeType, set[bytes]], list[Filter]]:
    """
    The parts of an Or: normalised values that an attribute may be equal to, and what is left.

    Of equalities that are Undefined one is left, as an Or is the same with one of them as with many.
    """
    wanted: dict[AttributeType, set[bytes]] = {}
    rest: list[Filter] = []
    undefined: Equal | None = None
    for part in parts:
        if isinstance(part, Equal):
            types = schema.known(part.attribute)
            if types is not None and len(types) == 1 and types[0].key != "objectclass":
                value = types[0].normalise(part.value)
                if value is None:
                    undefined = part
                else:
                    values = wanted.get(types[0])
                    if values is None:
                        values = wanted[types[0]] = set()
                    values.add(value)
                continue
        rest.append(part)
    if undefined is not None:
        rest.append(undefined)
    return wanted, rest


def _alternatives(parts: tuple[Filter, ...], shape: Shape[E]) -> list[Verdict | Test[E]]:
    """The parts of an Or; equalities of one attribute become one look into a set, and that comes first."""
    wanted, rest = alternatives(parts)
    return [
        *(_any_of(type_, frozenset(values), shape) for type_, values in wanted.items()),
        *(compile(part, shape) for part in rest),
    ]


def _any_of(type_: AttributeType, wanted: frozenset[bytes], shape: Attributes[E]) -> Verdict | Test[E]:
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


def _item(filter: _Item, type_: AttributeType, shape: Attributes[E]) -> Verdict | Test[E]:
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
    if normalise is schema.integer:
        # a number has one normal form and nothing else is a number: there is nothing to fold
        return lambda entry: wanted in read(entry)

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
            return None
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


def _with_rule(value: bytes, rule: Rule | None, type_: AttributeType, shape: Attributes[E]) -> Verdict | Test[E]:
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


# --- entries with many values ----------------------------------------------------------------------------------------

# Values that one step looks at: half a millisecond of the slowest rule, that of DNs.
VALUES_AT_ONCE = 400
# So many entries are looked through in no time, 2 microseconds; more are a step.
_FEW_HOLDERS = 100
# Values of one attribute in an Or that are looked up one by one; for more of them an entry's values are gone through.
_FEW_WANTED = 8

Steps = Callable[[E], Generator[None, None, Verdict]]
# Which entries have a (normalised) value of an attribute; None: nobody knows.
Holders = Callable[[AttributeType, bytes], Sequence[E] | None]


def passes(filter: Filter) -> dict[AttributeType | None, int]:
    """
    How often a test goes over all values of an attribute, at most; None: of any attribute. Attributes of which there is
    one value at the most are left out, and the object classes, which the shape decides about.
    """
    found: dict[AttributeType | None, int] = {}
    _count_passes(filter, found)
    return found


def _count_passes(filter: Filter, found: dict[AttributeType | None, int]) -> None:
    if isinstance(filter, And):
        for part in filter.parts:
            _count_passes(part, found)
    elif isinstance(filter, Or):
        # equalities of one attribute are one pass
        merged: set[str] = set()
        for part in filter.parts:
            if isinstance(part, Equal):
                if part.attribute in merged:
                    continue
                if len(schema.known(part.attribute) or ()) == 1:
                    merged.add(part.attribute)
            _count_passes(part, found)
    elif isinstance(filter, Not):
        _count_passes(filter.part, found)
    elif isinstance(filter, Present):
        return
    elif filter.attribute is None:
        found[None] = found.get(None, 0) + 1
    else:
        for type_ in schema.known(filter.attribute) or ():
            if not type_.single and type_.key != "objectclass":
                found[type_] = found.get(type_, 0) + 1


def stepped(filter: Filter, shape: Shape[E], holders: Holders[E] | None = None) -> Verdict | Steps[E]:
    """
    The same meaning as :func:`compile` finds, for an entry that has so many values that one after the other of them
    must not be looked at in one go: the test is a generator of short steps.

    :param holders: answers what it can about equality instead.
    """
    return _stepped(filter, shape, _Values(shape), holders)


class _Values:
    """A shape whose entries are values themselves: some of those that one attribute of an entry has."""

    def __init__(self, shape: Shape[E]) -> None:
        self.types: Sequence[AttributeType] = shape.types
        self.classes: frozenset[bytes] = shape.classes

    def reader(self, type_: AttributeType) -> Values[Sequence[bytes]] | None:
        return (lambda values: values) if type_ in self.types else None


def _stepped(filter: Filter, shape: Shape[E], some: _Values, holders: Holders[E] | None) -> Verdict | Steps[E]:
    if isinstance(filter, And):
        return _join_steps([_stepped(part, shape, some, holders) for part in filter.parts], absorbing=False)
    if isinstance(filter, Or):
        wanted, rest = alternatives(filter.parts)
        parts = [_any_of_steps(type_, values, shape, some, holders) for type_, values in wanted.items()]
        parts += [_stepped(part, shape, some, holders) for part in rest]
        return _join_steps(parts, absorbing=True)
    if isinstance(filter, Not):
        return _negation_steps(_stepped(filter.part, shape, some, holders))
    if isinstance(filter, Extensible):
        return _extensible_steps(filter, shape, some)
    types = schema.known(filter.attribute)
    if types is None:
        return None
    parts = []
    for type_ in types:
        if isinstance(filter, (Equal, Approx)) and type_.key != "objectclass":
            value = type_.normalise(filter.value)
            parts.append(None if value is None else _any_of_steps(type_, {value}, shape, some, holders))
        else:
            parts.append(_over(type_, _item(filter, type_, some), shape))
    return _join_steps(parts, absorbing=True)


def _join_steps(parts: Iterable[Verdict | Steps[E]], absorbing: bool) -> Verdict | Steps[E]:
    rest, tests = _open(parts, absorbing)
    if not tests:
        return rest

    def steps(entry: E) -> Generator[None, None, Verdict]:
        outcome = rest
        for each in tests:
            verdict = yield from each(entry)
            if verdict is absorbing:
                return absorbing
            if verdict is None:
                outcome = None
        return outcome

    return steps


def _negation_steps(part: Verdict | Steps[E]) -> Verdict | Steps[E]:
    if part is None:
        return None
    if isinstance(part, bool):
        return not part
    inner = part

    def steps(entry: E) -> Generator[None, None, Verdict]:
        verdict = yield from inner(entry)
        return None if verdict is None else not verdict

    return steps


def _over(type_: AttributeType, test: Verdict | Test[Sequence[bytes]], shape: Shape[E]) -> Verdict | Steps[E]:
    """Whether some of an attribute's values pass a test."""
    read = shape.reader(type_)
    if not callable(test):
        return test
    if read is None:
        return False
    passed, reader = test, read

    def steps(entry: E) -> Generator[None, None, Verdict]:
        values = reader(entry)
        for at in range(0, len(values), VALUES_AT_ONCE):
            if passed(values[at : at + VALUES_AT_ONCE]) is True:
                return True
            yield
        return False

    return steps


def _any_of_steps(
    type_: AttributeType, wanted: set[bytes], shape: Shape[E], some: _Values, holders: Holders[E] | None
) -> Verdict | Steps[E]:
    if holders is not None and len(wanted) <= _FEW_WANTED and shape.reader(type_) is not None:
        held = [holders(type_, value) for value in wanted]
        known = [entries for entries in held if entries is not None]
        if len(known) == len(held):
            return _join_steps([_among(entries) for entries in known], absorbing=True)
    return _over(type_, _any_of(type_, frozenset(wanted), some), shape)


def _among(entries: Sequence[E]) -> Verdict | Steps[E]:
    if not entries:
        return False

    def steps(entry: E) -> Generator[None, None, Verdict]:
        if len(entries) > _FEW_HOLDERS:
            yield
        return entry in entries

    return steps


def _extensible_steps(filter: Extensible, shape: Shape[E], some: _Values) -> Verdict | Steps[E]:
    rule = None if filter.rule is None else schema.RULES.get(filter.rule.lower())
    if rule is None and filter.rule is not None:
        return None
    types: Sequence[AttributeType] | None
    if filter.attribute is not None:
        types = schema.known(filter.attribute)
    elif rule is None or not _usable(rule) or (rule.normalise is not None and rule.normalise(filter.value) is None):
        types = None
    else:
        types = [type_ for type_ in shape.types if _fits(rule, type_)]
    if types is None:
        return None
    parts = [_over(type_, _with_rule(filter.value, rule, type_, some), shape) for type_ in types]
    if filter.dn_attributes:
        in_dn = _in_dn(filter, rule, shape)
        parts.append(in_dn if not callable(in_dn) else _at_once(in_dn))
    return _join_steps(parts, absorbing=True)


def _at_once(test: Test[E]) -> Steps[E]:
    def steps(entry: E) -> Generator[None, None, Verdict]:
        yield
        return test(entry)

    return steps


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
