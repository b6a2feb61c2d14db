"""The keys of the signed identity, as a backend fetches them, and whether a header verifies by them.

A backend fetches the keys now and then, and again when it meets a name that it does not know
(docs/backends.md). Here a thread fetches them again and again, from each address where an agent publishes
them. Each header must verify by every set that a backend could hold when it came.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jwt

from iamroles_scenarios.base.errors import AgentFault
from iamroles_scenarios.engine.ledger import NEVER
from iamroles_scenarios.traffic.polling import NANO, now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.judged_traffic import JudgedTraffic
    from iamroles_scenarios.engine.ledger import Entry
    from iamroles_scenarios.stage import Stage
    from iamroles_scenarios.stage.agent_handle import AgentHandle

_GATE = "https://gate.example.com"
"""`identity_header.issuer` of the worlds that are looked at."""
_PUBLISHED = re.compile(r"http://[^\s/]+:(\d+)(/\S*jwks)\b")
_EACH = 0.2
"""Seconds between two fetches."""

Keys = dict[str, dict[str, Any]]
"""JWKs by `kid`."""


def signing(stage: Stage, rotate: float) -> dict[str, Any]:
    """Return the part of a policy by which an agent signs identities, and publishes its keys where the suite
    can fetch them: on loopback, if the stage is there.

    Args:
        stage: where it runs.
        rotate: seconds that a key signs, and is published before and after.
    """
    header = {"issuer": _GATE, "lifetime": "2s", "rotate": f"{rotate:g}s"}
    listen = "127.0.0.1:0" if stage.host.startswith("127.") else "0.0.0.0:0"
    return {"metrics": {"listen": listen}, "identity_header": header}


class KeySets:
    """Key sets as they were fetched from all addresses that the agents' logs name.

    Args:
        agents: that sign.
        rotate: seconds that a key signs; a backend holds a set for half of it without a fetch.
    """

    def __init__(self, agents: Sequence[AgentHandle], rotate: float) -> None:
        self._agents = agents
        self._rotate = rotate
        self._cache = round(rotate / 2 * NANO)
        self._found: list[tuple[int, int, Keys]] = []
        """When each was asked for and when it was there, nanoseconds, and the keys."""
        self._fault = "the agent's log names no address at which it publishes its keys"
        """Why there are no keys."""
        self.signed: set[str] = set()
        """Names of keys whose headers verified."""

    def _fetch(self) -> None:
        for agent in self._agents:
            host = agent.spop_address.rpartition(":")[0]
            for port, path in sorted(set(_PUBLISHED.findall("\n".join(agent.lines())))):
                begun = now()
                try:
                    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
                        keys = json.load(answer)["keys"]
                    self._found.append((begun, now(), {key["kid"]: key for key in keys}))
                except (OSError, ValueError, KeyError, TypeError) as error:
                    self._fault = f"the keys cannot be fetched from {path}: {error}"

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

    def _held(self, at: int) -> list[Keys]:
        """Return the sets that a backend may hold at a moment, and the set that it would fetch then."""
        held: list[Keys] = []
        for begun, ended, keys in self._found:
            if keys not in held and (begun >= at or (begun >= at - self._cache and ended <= at)):
                held.append(keys)
            if begun >= at:
                break
        return held

    def unverified(self, entry: Entry, *, every: bool) -> str:
        """Return why a backend cannot verify an answer's identity; "" if it can, or on a refusal.

        Args:
            entry: the answer.
            every: by every set that it may hold; else one suffices, as when each agent has keys of its own.
        """
        if not entry.seen.allow:
            return ""
        whys = [why_not(entry, keys) for keys in self._held(entry.received)] or [self._fault]
        if not all(whys):
            self.signed.add(kid_of(entry))
        return next(filter(None, whys), "") if every or all(whys) else ""

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
        self._found = [one for one in self._found if one[1] >= before - self._cache]


def kid_of(entry: Entry) -> str:
    """Return the name of the key that signed an answer's identity; "" if there is none."""
    values = [value for header, value in entry.seen.headers if header == "x-iam-identity"]
    try:
        return str(jwt.get_unverified_header(values[0])["kid"])
    except (jwt.PyJWTError, LookupError):
        return ""


def why_not(entry: Entry, keys: Mapping[str, Any]) -> str:
    """Return why a backend that holds these keys refuses an answer's header; "" if it does not."""
    seen = entry.seen
    values = [value for header, value in seen.headers if header == "x-iam-identity"]
    if len(values) != 1:
        return f"{len(values)} signed identities"
    try:
        kid = jwt.get_unverified_header(values[0])["kid"]
        if kid not in keys:
            return f"its key {kid!r} is not among those published, {sorted(keys)}"
        claims = _verified(values[0], json.dumps(keys[kid]), seen.backend)
    except (jwt.PyJWTError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    principals = [value for header, value in seen.headers if header == "x-iam-principal"]
    if [claims["sub"]] != principals:
        return f"it is {claims['sub']!r}'s, not {principals}'s"
    return "" if claims["exp"] * NANO > entry.sent else "it was dead when it was asked for"


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
