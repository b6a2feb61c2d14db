"""The keys of the signed identity, as a back end fetches them, and whether a header verifies by them
(docs/backends.md)."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jwt

from iamroles_scenarios.traffic.polling import NANO, now

if TYPE_CHECKING:
    from iamroles_scenarios.engine.ledger import Entry
    from iamroles_scenarios.stage import Stage
    from iamroles_scenarios.stage.agent_handle import AgentHandle

GATE = "https://gate.example.com"
"""`identity_header.issuer` of the worlds that are looked at."""
_PLACE = re.compile(r"http://[^\s/]+:(\d+)(/\S*jwks)\b")
_EACH = 0.2
"""Seconds between two fetches."""

Keys = dict[str, dict[str, Any]]
"""JWKs by `kid`."""


def listen_on(stage: Stage) -> str:
    """`metrics.listen` of an agent whose keys the suite fetches: loopback, where the stage is there."""
    return "127.0.0.1:0" if stage.host.startswith("127.") else "0.0.0.0:0"


class KeySets:
    """Key sets as they were fetched from all places that the agents' logs name.

    Args:
        agents: who sign.
        cache: seconds that a back end holds a set without a fetch.
    """

    def __init__(self, agents: list[AgentHandle], cache: float) -> None:
        self._agents = agents
        self._cache = round(cache * NANO)
        self._found: list[tuple[int, int, Keys]] = []
        """When each was asked for and when it was there, nanoseconds, and the keys."""
        self.faults: list[str] = []

    def fetch(self) -> None:
        """Once from each place."""
        for agent in self._agents:
            host = agent.spop_address.rpartition(":")[0]
            for port, path in sorted(set(_PLACE.findall("\n".join(agent.lines())))):
                begun = now()
                try:
                    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=10) as answer:
                        keys = json.load(answer)["keys"]
                    self._found.append((begun, now(), {key["kid"]: key for key in keys}))
                except (OSError, ValueError, KeyError, TypeError) as error:
                    self.faults[:] = [f"the keys cannot be fetched from {path}: {error}"]

    def __bool__(self) -> bool:
        return bool(self._found)

    @contextmanager
    def fetched(self) -> Iterator[None]:
        """All the while."""
        end = threading.Event()

        def go_on() -> None:
            while not end.wait(_EACH):
                self.fetch()

        thread = threading.Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()

    def held(self, at: int) -> Iterator[Keys]:
        """Those that a back end may hold at a moment, and the one that it would fetch then."""
        for begun, ended, keys in self._found:
            if begun >= at:
                yield keys
                return
            if begun >= at - self._cache and ended <= at:
                yield keys

    def forget(self, before: int) -> None:
        """Drop what no back end holds any more at a moment: for runs that go on for long."""
        self._found = [one for one in self._found if one[1] >= before - self._cache]


def kid_of(entry: Entry) -> str:
    """The name of the key that signed an answer's identity; "" where there is none."""
    values = [value for header, value in entry.seen.headers if header == "x-iam-identity"]
    try:
        return str(jwt.get_unverified_header(values[0])["kid"])
    except (jwt.PyJWTError, LookupError):
        return ""


def why_not(entry: Entry, keys: Mapping[str, Any]) -> str:
    """Why a back end that holds these keys refuses an answer's header; "" where it does not."""
    seen = entry.seen
    values = [value for header, value in seen.headers if header == "x-iam-identity"]
    if len(values) != 1:
        return f"{len(values)} signed identities"
    try:
        kid = jwt.get_unverified_header(values[0])["kid"]
        if kid not in keys:
            return f"its key {kid!r} is not among those published, {sorted(keys)}"
        claims = jwt.decode(
            values[0],
            jwt.PyJWK(keys[kid]),
            algorithms=["ES256"],
            audience=seen.backend,
            issuer=GATE,
            options={
                "require": ["iss", "aud", "sub", "iat", "exp"],
                "verify_exp": False,
                "verify_iat": False,
            },
        )
    except (jwt.PyJWTError, KeyError) as error:
        return f"{type(error).__name__}: {error}"
    principals = [value for header, value in seen.headers if header == "x-iam-principal"]
    if [claims["sub"]] != principals:
        return f"it is {claims['sub']!r}'s, not {principals}'s"
    return "" if claims["exp"] * NANO > entry.sent else "it was dead when it was asked for"
