"""The oracle through HAProxy: a client gets its verdict, and the backend its tags.

HTTP and HAProxy narrow the questions. The client has only its own address, so the networks of a policy move
to where that is; and only valid HTTP requests are sent.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence
from iamroles_scenarios.checks.oracle.answer import said, unlike_seen
from iamroles_scenarios.checks.oracle.campaign import POLICY, again
from iamroles_scenarios.checks.oracle.generate import DrawnPolicy, draw, may_conflict
from iamroles_scenarios.checks.oracle.judge import judge
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.jose import mint

if TYPE_CHECKING:
    from iamroles_scenarios.engine.target import Target

_MOVED = {"192.0.2.7/32": 0, "192.0.2.0/24": 8}
"""Networks of drawn policies, each with its size at the client's address in bits."""


def play(target: Target, seed: int, worlds: int, cases: int) -> str:
    """Play some policies through the proxy, and say in one sentence how many agreed.

    Raises:
        CheckFailed: a disagreement.
    """
    asked = allowed = played = number = 0
    with bench(target, POLICY, "policy.oracle.proxy", own=True) as here:
        source = _source(here)
        while played < worlds:
            moved = _moved(draw(seed, number, cases), source)
            if not may_conflict(number) and moved.loads:
                one = _play(here, f"seed {seed}, world {number}", again(seed, number), moved, source)
                asked, allowed, played = asked + one[0], allowed + one[1], played + 1
            number += 1
    if not allowed:
        raise CheckFailed("nothing was allowed in any world: the gate serves nothing at all")
    return f"seed {seed}: {asked} requests in {played} worlds agree, {allowed} of them reached their backend"


def _source(here: Bench) -> str:
    """Return the client's address; nothing changes it on the way to HAProxy, which logs its port (1.14)."""
    proxy = here.world.proxy
    with closing(socket.create_connection((proxy.host, proxy.port))) as client:
        return str(client.getsockname()[0])


def _moved(played: DrawnPolicy, source: str) -> DrawnPolicy:
    bits = ip_address(source).max_prefixlen
    networks = {
        old: str(ip_network(f"{source}/{bits - above}", strict=False)) for old, above in _MOVED.items()
    }
    text = json.dumps(played.policy)
    for old, new in networks.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    return DrawnPolicy(json.loads(text), played.cases)


def _play(here: Bench, which: str, command: str, played: DrawnPolicy, source: str) -> tuple[int, int]:
    """Play one policy; return the numbers of questions and of allowed questions."""
    issuer, base = here.issuer(), here.loan.policy
    policy = {**base, **played.policy, "issuers": [{**base["issuers"][0], **played.policy["issuers"][0]}]}
    answer = here.reload(policy)
    if not answer.get("reloaded"):
        evidence = Evidence(sent=json.dumps(played.policy), received=str(answer))
        raise CheckFailed("the agent refuses a policy that is sound", evidence)
    asked = allowed = 0
    now = int(time.time())
    for claims, request in _askable(played, source):
        dated = {**claims, "iat": now + claims["iat"], "exp": now + claims["exp"]}
        token = mint({"claims": dated, "drop": ["nbf"]}, issuer.keys, now, issuer.url)
        expected = judge(policy, dated, request, now)
        sent = {name: request[name] or "" for name in ("method", "host", "path", "role")}
        seen = here.ask(token, with_reason=False, connection="oracle", **sent)
        if found := unlike_seen(expected, seen):
            what = f"{json.dumps(played.policy)}\ntoken: {claims}\n{seen.sent}"
            evidence = Evidence(sent=what, expected=said(expected), received=seen.received)
            message = f"{which}, through HAProxy: {'; '.join(found)} (over SPOP: {command})"
            raise CheckFailed(message, evidence)
        asked, allowed = asked + 1, allowed + expected.allow
    return asked, allowed


def _askable(played: DrawnPolicy, source: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield claims and requests of the questions that this client can send over HTTP."""
    for case in played.cases:
        request = {**case.request, "src": source}
        path = request["path"]
        printable = path.startswith("/") and all(0x21 <= ord(char) <= 0x7E for char in path)
        if printable and request["host"]:
            yield case.claims, request
