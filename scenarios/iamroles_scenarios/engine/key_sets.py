"""The keys of the signed identity, as a backend fetches them, and whether a header verifies by them.

A backend fetches the keys now and then, and again when it meets a name that it does not know
(docs/backends.md). Here a thread fetches them again and again, from each address where an agent publishes
them. Each header must verify by every set that a backend could hold when it came (SPEC.md 1.18).
"""

from __future__ import annotations

import functools
import json
import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

import jwt

from iamroles_scenarios.base.errors import AgentFault, TooSlow
from iamroles_scenarios.engine.ledger import NEVER
from iamroles_scenarios.traffic.polling import NANO, now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.judged_traffic import JudgedTraffic
    from iamroles_scenarios.engine.ledger import Entry
    from iamroles_scenarios.engine.observation import Observation
    from iamroles_scenarios.stage import Stage
    from iamroles_scenarios.stage.agent_handle import AgentHandle

_GATE = "https://gate.example.com"
"""`identity_header.issuer` of the worlds that are looked at."""
SECRETS = "identity.key"
"""The file of secrets, beside the world files of agents that share them."""
_EACH = 0.2
"""Seconds between two fetches."""
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks for no proxy: to look for one is to read the environment, which pytest changes meanwhile."""
_SKEW = 1.0
"""Seconds by which `iat` may be ahead of the judge: agents round."""
TYPE = "iam-identity+jwt"
PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""Members of a JWK that are secret (RFC 7518 section 6)."""

Keys = dict[str, dict[str, Any]]
"""JWKs by `kid`."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer of a check, as an `Entry` is one of a timeline."""

    seen: Observation
    sent: int
    """Nanoseconds of CLOCK_REALTIME, as `received`."""
    received: int


def signing(stage: Stage, rotate: float, *, shared: bool = False) -> dict[str, Any]:
    """Return the part of a policy by which an agent signs identities, and publishes its keys where the suite
    can fetch them: on loopback, if the stage is there.

    Args:
        stage: where it runs.
        rotate: seconds that a key signs, and is published before and after; an identity lives half as long.
        shared: whether it shares its keys with others, by the file `SECRETS`.
    """
    header = {"issuer": _GATE, "lifetime": f"{min(rotate / 2, 60):g}s", "rotate": f"{rotate:g}s"}
    if shared:
        header["secrets"] = SECRETS
    return {"metrics": listening(stage), "identity_header": header}


def listening(stage: Stage) -> dict[str, Any]:
    """Return the table `metrics` of a policy by which the suite reaches an agent's pages."""
    return {"listen": "127.0.0.1:0" if stage.host.startswith("127.") else "0.0.0.0:0"}


def keeping(stage: Stage) -> dict[str, Any]:
    """Return the table `agent` of a policy by which an agent keeps its state; a new container has none."""
    return {"state_dir": "state"} if stage.host.startswith("127.") else {}


def named(agents: Sequence[AgentHandle], ending: str) -> Iterator[str]:
    """Yield the pages with this ending that agents' logs name: of each worker its own, if the port is 0."""
    for agent in agents:
        host = agent.spop_address.rpartition(":")[0]
        found = re.findall(rf"http://[^\s/]+:(\d+)(/\S*{ending})\b", "\n".join(agent.lines()))
        yield from (f"{host}:{port}{path}" for port, path in sorted(set(found)))


def read_page(place: str) -> str:
    """Fetch a page from a host, port and path.

    Raises:
        OSError: it cannot be fetched.
    """
    with _OPENER.open(f"http://{place}", timeout=10) as answer:
        return str(answer.read().decode("utf-8", "replace"))


class KeySets:
    """Key sets as they were fetched from all addresses that the agents' logs name.

    Args:
        agents: that sign.
        rotate: seconds that a key signs; a backend holds a set for half of it without a fetch.
    """

    def __init__(self, agents: Sequence[AgentHandle], rotate: float) -> None:
        self._agents = agents
        self._rotate = rotate
        self._lifetime = min(rotate / 2, 60.0)
        self._cache = round(rotate / 2 * NANO)
        self._found: list[tuple[int, int, int, Keys]] = []
        """When its round began, when it was asked for and when it was there, nanoseconds, and the keys."""
        self.fault = "the agent's log names no address at which it publishes its keys"
        """Why there are no keys at an address that was asked in the last round; "" if there are at all."""
        self.signed: set[str] = set()
        """Names of keys whose headers verified."""
        self.unseen = 0
        """Answers for which the judge fetched no set in time: nothing is known of their headers."""

    def _fetch(self) -> None:
        """Fetch from all addresses: that of a worker that was killed must not hide those after it."""
        fault, around = self.fault, now()
        for number, place in enumerate(named(self._agents, "jwks")):
            fault, begun = fault if number else "", now()
            try:
                keys = {key["kid"]: key for key in json.loads(read_page(place))["keys"]}
                self._found.append((around, begun, now(), keys))
            except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
                fault = f"the keys cannot be fetched: {error}"
        self.fault = fault

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """Fetch at the begin, every `_EACH` seconds, and at the end."""
        self._fetch()
        end = threading.Event()

        def go_on() -> None:
            while not end.wait(_EACH):
                self._fetch()
            self._fetch()

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def published(self) -> set[str]:
        """Fetch once, and return the names of all keys that are published now."""
        known = len(self._found)
        self._fetch()
        return {kid for *_, keys in self._found[known:] for kid in keys}

    def private(self) -> list[str]:
        """Return the private members of published keys, each with the name of its key."""
        keys = {kid: key for *_, found in self._found for kid, key in found.items()}
        return [f"{name} of {kid}" for kid, key in keys.items() for name in sorted(PRIVATE & key.keys())]

    def _held(self, entry: Entry | Answered) -> list[Keys]:
        """Return the sets that a backend may hold when an answer comes, and those that it would fetch then.

        A set that a late judge fetched proves nothing: its key may have been replaced right after it signed,
        and has to be published for `rotate` from then on (SPEC.md 10.9).
        """
        held: list[Keys] = []
        at, next_round = entry.received, NEVER
        for around, begun, ended, keys in self._found:
            if around > next_round or ended > entry.sent + self._rotate * NANO:
                break
            if around >= at:
                next_round = around
            elif begun < at - self._cache or ended > at:
                continue
            if keys not in held:
                held.append(keys)
        return held

    def unverified(self, entry: Entry | Answered) -> str:
        """Return why a backend cannot verify an answer's identity; "" if it can, on a refusal, or `unseen`.

        By every set that it may hold, of whichever agent.
        """
        if not entry.seen.allow:
            return ""
        whys = [why_not(entry, keys, self._lifetime) for keys in self._held(entry)]
        if not whys:
            self.unseen += not self.fault
            return self.fault
        if not all(whys):
            self.signed.add(kid_of(entry))
        return next(filter(None, whys), "")

    def must_have_verified(self, keys: int) -> None:
        """Hold the judge to having seen headers of this many keys that verify.

        Raises:
            TooSlow: it fetched the sets too late for some.
        """
        if (seen := len(self.signed)) < keys:
            raise TooSlow(f"the judge fetched keys too late: identities by {seen} verified, not by {keys}")

    def await_next(self, traffic: JudgedTraffic) -> None:
        """Wait until another key signs.

        Raises:
            AgentFault: one signs for twice as long as it may.
        """
        signed: set[str] = set()
        begun = now()
        while len(signed) < 2:
            if now() > begun + 2 * self._rotate * NANO:
                raise AgentFault(f"one key signed for {2 * self._rotate:g} s; `rotate` is {self._rotate:g} s")
            traffic.wait(1)
            signed |= {kid_of(entry) for entry in traffic.ledger.between(begun, NEVER)[-1:]} - {""}

    def forget(self, before: int) -> None:
        """Drop the sets that no backend holds at a moment: a long run would collect too many."""
        self._found = [one for one in self._found if one[2] >= before - self._cache]


def kid_of(entry: Entry | Answered) -> str:
    """Return the name of the key that signed an answer's identity; "" if there is none."""
    values = [value for header, value in entry.seen.headers if header == "x-iam-identity"]
    try:
        return str(jwt.get_unverified_header(values[0])["kid"])
    except (jwt.PyJWTError, LookupError):
        return ""


def why_not(entry: Entry | Answered, keys: Mapping[str, Any], lifetime: float) -> str:
    """Return why a backend that holds these keys refuses an answer's header; "" if it does not."""
    seen = entry.seen
    values = [value for header, value in seen.headers if header == "x-iam-identity"]
    if len(values) != 1:
        return f"{len(values)} signed identities"
    try:
        header = jwt.get_unverified_header(values[0])
        if header["kid"] not in keys:
            return f"its key {header['kid']!r} is not among those published, {sorted(keys)}"
        claims = _verified(values[0], json.dumps(keys[header["kid"]]), seen.backend)
        return _wrong_field({**header, **claims}, entry, lifetime)
    except (jwt.PyJWTError, KeyError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _wrong_field(fields: Mapping[str, Any], entry: Entry | Answered, lifetime: float) -> str:
    """Return the first field that is not as SPEC.md 1.18 says; "" if all are."""
    tags, iat, exp = entry.seen.tags, fields["iat"], fields["exp"]
    known = {"typ": TYPE, "aud": entry.seen.backend, "sub": tags.get("principal"), "role": tags.get("role")}
    known |= {"session": tags.get("session", ""), "idp": tags.get("issuer")}
    for name, wish in known.items():
        value = fields.get(name) or ""
        if value != wish and not (name == "aud" and value == [wish]):
            return f"its {name} is {value!r}, not {wish!r}"
    if exp * NANO <= entry.sent:
        return "it was dead when it was asked for"
    if iat > entry.received / NANO + _SKEW:
        return f"its iat is {iat - entry.received / NANO:.1f} s ahead"
    if exp - iat > lifetime:
        return f"it lives {exp - iat} s; `lifetime` is {lifetime:g} s"
    ends = tags.get("expires") or "inf"
    return f"its exp is {exp}, and access ends at {ends}" if exp > float(ends) else ""


@functools.lru_cache(1 << 10)
def _verified(value: str, key: str, backend: str) -> Mapping[str, Any]:
    """Return the claims of a header, which many answers carry; the caller looks at the times."""
    claims: Mapping[str, Any] = jwt.decode(
        value,
        jwt.PyJWK(json.loads(key)),
        algorithms=["ES256"],
        audience=backend,
        issuer=_GATE,
        options={
            "require": ["iss", "aud", "sub", "iat", "exp"],
            "verify_exp": False,
            "verify_iat": False,
        },
    )
    return claims
