"""The oracle through HAProxy: what it decides is what a client gets, and what the backend is told.

HTTP and HAProxy narrow the questions: the client's address is the one that it has, so networks of a world are
moved to where that is; and what is no HTTP request is not sent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence, Untestable
from iamroles_scenarios.checks.oracle.answer import said, unlike_seen
from iamroles_scenarios.checks.oracle.campaign import WORLD, again
from iamroles_scenarios.checks.oracle.generate import DrawnWorld, may_conflict, world
from iamroles_scenarios.checks.oracle.judge import judge
from iamroles_scenarios.declarations.scenario import RequestSpec
from iamroles_scenarios.engine.players import player_for
from iamroles_scenarios.jose import mint

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target
    from iamroles_scenarios.engine.worlds import Loan

_RELOAD_WITHIN = 10.0
_LOG_WITHIN = 5.0
_MOVED = {"192.0.2.7/32": 0, "192.0.2.0/24": 8}
"""Networks of generated worlds, and how many bits above the client's own address they move to."""


def play(target: Target, seed: int, worlds: int, cases: int) -> str:
    """Play some worlds through the proxy; gives one sentence of what agreed.

    Raises:
        CheckFailed: a disagreement.
        Untestable: the client's address cannot be learnt.
    """
    asked = allowed = played = number = 0
    with target.worlds.borrow(WORLD, "policy.oracle.proxy") as loan:
        source = _source(target, loan)
        while played < worlds:
            moved = _moved(world(seed, number, cases), source)
            if not may_conflict(number) and moved.loads:
                one = _world(target, loan, seed, number, played=moved, source=source)
                asked, allowed, played = asked + one[0], allowed + one[1], played + 1
            number += 1
    if not allowed:
        raise CheckFailed("nothing was allowed in any world: the gate serves nothing at all")
    return f"seed {seed}: {asked} requests in {played} worlds agree, {allowed} of them reached their backend"


def _source(target: Target, loan: Loan) -> str:
    """The client's address as HAProxy sees it."""
    player = player_for("gate", loan.world, target.scale)
    player.ask(RequestSpec(host="who-am-i.test"), "", with_reason=False)
    player.close()
    found = loan.world.haproxy.wait_log(
        lambda record: record.get("host") == "who-am-i.test", _LOG_WITHIN * target.scale
    )
    if found is None:
        raise Untestable("HAProxy's log does not say which address the client has")
    return str(ip_address(found["client"]))


def _moved(played: DrawnWorld, source: str) -> DrawnWorld:
    bits = ip_address(source).max_prefixlen
    networks = {
        old: str(ip_network(f"{source}/{bits - above}", strict=False)) for old, above in _MOVED.items()
    }
    text = json.dumps(played.policy)
    for old, new in networks.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return DrawnWorld(json.loads(text), played.cases)


def _world(
    target: Target, loan: Loan, seed: int, number: int, *, played: DrawnWorld, source: str
) -> tuple[int, int]:
    """How many questions were asked, and how many were allowed."""
    issuer = target.worlds.issuer(loan.issuer("corp"))
    base = loan.policy
    policy = {**base, **played.policy, "issuers": [{**base["issuers"][0], **played.policy["issuers"][0]}]}
    answer = loan.world.agent.reload(policy, within=_RELOAD_WITHIN * target.scale)
    if not answer.get("reloaded"):
        sent = json.dumps(played.policy)
        raise CheckFailed(
            "the agent refuses a policy that is sound", Evidence(sent=sent, received=str(answer))
        )
    player = player_for("gate", loan.world, target.scale)
    asked = allowed = 0
    now = int(time.time())
    for claims, request in _askable(played, source):
        dated = {**claims, "iat": now + claims["iat"], "exp": now + claims["exp"]}
        token = mint({"claims": dated, "drop": ["nbf"]}, issuer.keys, now, issuer.url)
        expected = judge(policy, dated, request, now)
        spec = RequestSpec(
            method=request["method"],
            host=request["host"],
            path=request["path"],
            role=request["role"] or "",
            connection="oracle",
        )
        seen = player.ask(spec, token, with_reason=False)
        if found := unlike_seen(expected, seen):
            sent = f"{json.dumps(played.policy)}\ntoken: {claims}\n{seen.sent}"
            evidence = Evidence(sent=sent, expected=said(expected), received=seen.received)
            where = f"seed {seed}, world {number}, through HAProxy"
            raise CheckFailed(f"{where}: {'; '.join(found)} (over SPOP: {again(seed, number)})", evidence)
        asked, allowed = asked + 1, allowed + expected.allow
    player.close()
    return asked, allowed


def _askable(played: DrawnWorld, source: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Claims and requests of the questions that are HTTP requests of this client."""
    for case in played.cases:
        request = {**case.request, "src": source}
        path = request["path"]
        printable = path.startswith("/") and all(0x21 <= ord(char) <= 0x7E for char in path)
        if printable and request["host"]:
            yield case.claims, request
