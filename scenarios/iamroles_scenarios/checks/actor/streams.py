"""Streams of agents that act for people: revocations, policies and fresh credentials about one agent."""

from __future__ import annotations

import copy
import math
from typing import Any

from iamroles_scenarios.checks.live.fixture import SOCKET, WITHIN, LiveBench, live_bench
from iamroles_scenarios.checks.live.renewing import RENEWING, WORLD, ask, outlive
from iamroles_scenarios.checks.live.stream import Stream
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import refused
from iamroles_scenarios.engine.target import Target

_LIFE = 5.0
"""Seconds, times the scale, of a stream's first credential."""
_PASSES = Expectation(allow=True, backend="plain")
_ELSEWHERE = "https://agents.example"


def _token(here: LiveBench, sub: str, actor: str, exp: object = "+15m") -> str:
    """Mint a credential of a person's one session; the actor is `name`, `name of issuer`, or "": nobody."""
    name, _, issuer = actor.partition(" of ")
    act: dict[str, Any] = {"act": {"sub": name} | ({"iss": issuer} if issuer else {})} if name else {}
    return here.token(sub=sub, exp=exp, claims={"sid": f"s-{sub}", "jti": f"s-{sub}", **act})


def _open(here: LiveBench, *who: tuple[str, str]) -> list[Stream]:
    return [here.open(SOCKET, _token(here, *each)) for each in who]


@check("actor.stream.revoked", "ACTOR-REVOKE-001", lane="gate", features={"live", "actor"})
def revoked(target: Target) -> None:
    """A revocation by `actors` ends and refuses what an agent does, for one person or all, and nothing else.

    First for ann alone; after a restart of the agent, for everybody. The actor's name is long.
    """
    bot = "bot" * 170
    with live_bench(target, "actor.stream.revoked", revoking=True) as here:
        who = (("ann", bot), ("ben", bot), ("ben", f"{bot} of {_ELSEWHERE}"), ("ann", ""), ("ann", "svc"))
        anns, *others = _open(here, *who)
        here.revoke(actors=["ann", bot], principals=["ann"])
        here.must_end([anns], "the revocation of its actor for ann")
        here.must_last(others, "the revocation of another actor, or for another person")
        here.restart_agent()
        here.revoke(actors=[bot])
        here.must_end(others[:2], "the revocation of its actor")
        here.must_last(others[2:], "the revocation of another actor")
        gone = refused("credential_revoked")
        for each, expected in zip(who, (gone, gone, gone, _PASSES, _PASSES), strict=True):
            what = f"a request of {' by '.join(each)}"
            here.expect(what, _token(here, *each), expected, within=WITHIN, path="/plain/a")


@check("actor.stream.policy", "ACTOR-CUT-001", lane="gate", features={"live", "reload", "actor"})
def policy(target: Target) -> None:
    """A policy whose `actors` no longer permit a stream ends it, and no other.

    First a deny of somebody else; then a deny of `bot`, which spares the `bot` of another issuer; then a
    grant for `svc` alone.
    """
    with live_bench(target, "actor.stream.policy", own=True) as here:
        document = copy.deepcopy(here.loan.policy)
        bot, *others = _open(
            here, ("ann", "bot"), ("ann", ""), ("ann", f"bot of {_ELSEWHERE}"), ("ann", "svc")
        )
        *going, svc = others
        document["denies"] = [{"id": "D1", "roles": ["*"], "path": "/live", "actors": [{"sub": "other"}]}]
        here.must_reload(document, "a deny of another actor")
        here.must_last([bot, *others], "a deny of another actor")
        document["denies"][0]["actors"] = [{"sub": "other"}, {"sub": "bot"}]
        here.must_reload(document, "a deny of `bot`")
        here.must_end([bot], "a deny of its actor")
        here.must_last(others, "a deny of another actor")
        document["grants"][0]["actors"] = [{"sub": "svc"}]
        here.must_reload(document, "a grant for one actor")
        here.must_end(going, "its grant became one for an actor")
        here.must_last([svc], "a grant for its actor")
        for stream, status in ((bot, 403), *((one, 403) for one in going), (svc, 200)):
            expected = Expectation(status=status)
            here.expect(f"a request with the token of {stream}", stream.token, expected, path="/live/reader")


_FRESH = (
    ("ann", "bot", "bot"),
    ("ben", "bot", "svc"),
    ("cat", "bot", ""),
    ("dan", "", "bot"),
    ("eve", "bot", f"bot of {_ELSEWHERE}"),
)
"""The caller of each stream, the actor of its token, and the actor of the fresh token."""


@check("actor.stream.renew", "ACTOR-RENEW-001", lane="gate", features={"live", "renew", "actor"})
def renew(target: Target) -> None:
    """A fresh credential prolongs a stream only if both have the same actor, or none."""
    with live_bench(target, "actor.stream.renew", WORLD) as here:
        end = here.end(_LIFE)
        streams = {
            sub: here.open(SOCKET, _token(here, sub, actor, end), RENEWING) for sub, actor, _ in _FRESH
        }
        for sub, _, fresh in _FRESH:
            ask(here, streams.values(), _token(here, sub, fresh))
        here.must_expire([streams[sub] for sub, actor, fresh in _FRESH if actor != fresh])
        outlive(here, [streams["ann"]], math.inf, "a fresh credential of the same actor was seen")
