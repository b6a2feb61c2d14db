"""The signed identity, field by field, as a backend reads it (SPEC.md 1.18, docs/backends.md)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import jwt

from iamroles_scenarios.base.errors import Inapplicable, TooSlow, Untestable
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.engine.bench import ALLOWED, Bench, bench, own_bench
from iamroles_scenarios.engine.key_sets import SECRETS, Answered, KeySets, keeping, kid_of, signing
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import part
from iamroles_scenarios.traffic.polling import NANO
from iamroles_scenarios.wire.asker import decide

_ROTATE = 8.0
"""Seconds that a key signs; an identity lives half as long. Both times the scale."""
_LONG_ROTATE = 3600.0
"""Seconds: no key changes by itself."""
_POLL, _WITHIN = 0.25, 10.0
_SOON, _LATER = 3.0, 900
"""Seconds until a token ends that ends before an identity would, times the scale, and until all others do."""

_READS = {"path": "/orders/1", "role": "reader"}
_EXPORTS = {"path": "/orders/export", "role": "reader"}
_WRITES = {"path": "/orders/1", "method": "POST", "role": "writer"}
_BOTH = {"sub": "alice", "roles": ["reader", "writer"], "claims": {"jti": "s1"}}
_Rows = list[tuple[dict[str, Any], dict[str, Any]]]
_FIELDS: _Rows = [
    ({"sub": "carol"}, _READS),
    ({"sub": "carol"}, _EXPORTS),
    ({"sub": "carol", "roles": ["writer"]}, _WRITES),
    ({"sub": "carol", "drop": ["jti"]}, _READS),
    ({"sub": "dave", "exp": "soon"}, _READS),
]
"""Recipe and request: backends, roles, a caller without a session, an access that ends soon."""
_CALLERS: _Rows = [
    *[(_BOTH, _READS)] * 4,  # so that most likely each worker has made the longer identity before
    *[({**_BOTH, "exp": "soon"}, _READS)] * 4,
    (_BOTH, _EXPORTS),
    (_BOTH, {**_READS, "role": "writer"}),
    (_BOTH, _WRITES),
    ({**_BOTH, "sub": "bob"}, _READS),
    ({**_BOTH, "claims": {"jti": "s2"}}, _READS),
    ({**_BOTH, "issuer": "other"}, _READS),
]
"""Each other differs from the first: in end, backend, role, both, caller, session, issuer."""
_ACTORS: _Rows = [
    ({**_BOTH, "claims": {"jti": "a1", **({"act": act} if act else {})}}, _READS)
    for act in ({}, {"sub": "bot"}, {"sub": "svc"}, {"sub": "bot", "iss": "urn:x", "act": {"sub": "svc"}})
]
_LONG = {"jti": "j" * 512, "act": {"sub": "b" * 512, "iss": "urn:" + "x" * 508}}
_ACTORS.append(({**_BOTH, "sub": "a" * 512, "claims": _LONG}, _READS))
"""Each differs from the others in the actor alone; the last is as long as tags may be (5.11)."""
_SHARED = {"id": "R5", "roles": ["writer"], "methods": ["GET"], "path": "/orders", "backend": "orders-ro"}


@contextmanager
def _signed(target: Target) -> Iterator[tuple[Bench, KeySets]]:
    """Lend a world whose agent signs identities, shared by the checks of this module, and its keys."""
    rotate = 2.0 * round(target.seconds(_ROTATE) / 2)
    policy = policy_of(WorldSpec(policy="orders"))
    other = {**policy["issuers"][0], "name": "other", "issuer": "{idp}/other"}
    override: dict[str, Any] = {
        "issuers": [*policy["issuers"], other],
        "grants": [*policy["grants"], _SHARED],
    }
    with bench(target, "orders", changes=True, **{**override, **signing(target.stage, rotate)}) as here:
        yield here, KeySets([here.world.agent], rotate)


def _ask(here: Bench, token: str, request: dict[str, Any], soon: int = 0) -> Answered:
    """Ask a question that is allowed, until the token ends."""
    sent = time.time_ns()
    seen = here.ask(token, with_reason=False, **request)
    if soon and not seen.allow:
        here.in_time(soon, "a question with a token that ends soon")
    if not seen.allow:
        raise here.failed("a request that is granted was refused", seen, ALLOWED)
    return Answered(seen, sent, time.time_ns())


def _verify(here: Bench, sets: KeySets, answers: list[Answered]) -> None:
    for answer in answers:
        if why := sets.unverified(answer):
            raise here.failed(f"a backend must refuse the signed identity: {why}", answer.seen)


def _wrong_actor(here: Bench, recipe: dict[str, Any], answer: Answered) -> str:
    """Return how the `act` of an identity differs from the token's (SPEC.md 13.6); "" if it does not."""
    act = recipe["claims"].get("act")
    wanted = act and {"sub": act["sub"], "iss": act.get("iss", here.issuer().url)}
    [identity] = [value for name, value in answer.seen.headers if name == "x-iam-identity"]
    got = part(identity, 1).get("act")
    return "" if got == wanted else f"its act is {got!r}, not {wanted!r}"


def _judge(target: Target, rows: _Rows) -> str:
    with _signed(target) as (here, sets):
        with sets.fetched():
            answers, later = list[Answered](), here.now() + _LATER
            for recipe, request in [*rows, *reversed(rows)]:
                # The identity that answered the question before lives longer, also if the second changes.
                began = answers[-1].sent // NANO if answers else here.now()
                soon = began + round(here.seconds(_SOON)) if "exp" in recipe else 0
                token = here.token(**{**recipe, "exp": soon or later})
                answers.append(_ask(here, token, request, soon))
        _verify(here, sets, answers)
        for (recipe, _), answer in zip([*rows, *reversed(rows)], answers, strict=True):
            if rows is _ACTORS and (why := _wrong_actor(here, recipe, answer)):
                raise here.failed(f"a backend must refuse the signed identity: {why}", answer.seen)
        if sets.unseen:
            raise TooSlow(f"the judge fetched no keys in time for {sets.unseen} identities")
    return f"{len(answers)} identities"


@check("identity.signed.fields", "SIGNED-FIELD-001", lane="gate", features={"identity"})
def fields(target: Target) -> str:
    """A backend can verify each field of the signed identity: who acts, in which role, for whom, how long."""
    return _judge(target, _FIELDS)


@check("identity.signed.callers", "SIGNED-CALLER-001", lane="gate", features={"identity"})
def callers(target: Target) -> str:
    """Nobody's signed identity is used again for another caller, role, session, issuer, backend or end."""
    return _judge(target, _CALLERS)


@check("identity.signed.actors", "ACTOR-SIGNED-001", lane="gate", features={"identity", "actor"})
def actors(target: Target) -> str:
    """The signed identity names the actor and its issuer, exactly if there is one, and never another's."""
    return _judge(target, _ACTORS)


_KEYS = ("SIGNED-KEY-001", "SIGNED-KEY-002")


@check("identity.signed.keys", *_KEYS, lane="gate", features={"identity"}, long=True)
def keys(target: Target) -> str:
    """The published keys are public only, and a new key is published before it signs.

    A caller asks until a third key signs. Each identity verifies by every set that a backend may hold.
    """
    with _signed(target) as (here, sets):
        with sets.fetched():
            within = target.seconds(3.5 * _ROTATE)
            token, end = here.token(sub="erin"), time.monotonic() + within
            answers = [_ask(here, token, _READS)]
            while len(set(map(kid_of, answers))) < 3 and time.monotonic() < end:
                rest(_POLL)
                answers.append(_ask(here, token, _READS))
        if found := ", ".join(sets.private()):
            raise here.failed(f"the published set has private members: {found}")
        if sets.fault:
            raise here.failed(sets.fault)
        _verify(here, sets, answers)
        if len(set(map(kid_of, answers))) < 3:
            rotate = here.loan.policy["identity_header"]["rotate"]
            raise here.failed(f"no third key signed within {within:g} s; `rotate` is {rotate}")
    sets.must_have_verified(3)
    return f"{len(answers)} identities, {len(sets.signed)} keys"


@contextmanager
def _stopping(target: Target, owner: str) -> Iterator[tuple[Bench, float, Callable[[], str]]]:
    """Lend a world whose agent keeps its keys, `rotate`, and a function that asks which key signs."""
    if not target.agent.runs:
        raise Inapplicable("process of its own")
    rotate = 4.0 * ceil(target.scale)  # an agent may refuse less than two lifetimes
    tables = {**signing(target.stage, rotate), "agent": keeping(target.stage)}
    tables["identity_header"]["lifetime"] = "2s"
    with bench(target, "orders", owner, own=True, **tables) as here:
        token = here.token(exp="+15m")

        def signer() -> str:
            for _last in polls(here.seconds(_WITHIN)):
                signed = decide(here.world.agent.spop_address, iam_check(token, path="/orders/1"))
                if identity := signed.get("identity"):
                    return str(jwt.get_unverified_header(str(identity))["kid"])
            raise here.failed(f"no identity was signed within {_WITHIN:g} s of the start")

        here.expect("before the stop", token, ALLOWED, within=_WITHIN)
        here.close()
        yield here, rotate, signer


@check("identity.signed.restart", "SIGNED-KEY-002", features={"identity", "oidc"}, long=True)
def restart(target: Target) -> None:
    """After a long stop no key signs that was just made, if an older one is still published.

    The stop is as long as the keys sign that were published before it. An agent may forget its keys. A key
    may be made while the agent stops, after the judge has looked; so the agent is stopped a second time.
    """
    with _stopping(target, "identity.signed.restart") as (here, rotate, signer):
        sets = KeySets([here.world.agent], rotate)
        for _ in range(2):
            before = sets.published()
            here.world.agent.stop()
            rest(2 * rotate)
            began = time.time()
            here.world.agent.start()
            if (kid := signer()) in before or not before & sets.published():
                return
            here.in_time(began + rotate / 2, "an answer soon after the start")
        what = "a key signs that was not published before the stop"
        raise here.failed(what, expected=f"one of {sorted(before)}", received=kid)


@check("identity.signed.stopped", "FIRE-IDENTITY-001", features={"identity", "oidc"}, long=True)
def stopped(target: Target) -> None:
    """After a stop the key is still published that signed last before it.

    None of the keys with which the agent began signs any longer then. An agent may forget all its keys.
    """
    with _stopping(target, "identity.signed.stopped") as (here, rotate, signer):
        sets = KeySets([here.world.agent], rotate)
        first = sets.published()
        for _last in polls(4 * rotate):
            signed, kid = time.time(), signer()
            if kid not in first:
                break
        else:
            raise Untestable("no key signed that was made after the start")
        before = sets.published()
        here.world.agent.stop()
        here.world.agent.start()
        signer()
        after = sets.published()
        here.in_time(signed + rotate, "a look at the keys after a stop")
        if kid in before and before & after and kid not in after:
            raise here.failed("the key that signed last is not published after a stop", received=f"{after}")


@check("identity.signed.replaced", "SIGNED-SHARED-002", features={"identity", "oidc", "reload"})
def replaced(target: Target) -> str:
    """Two agents share a secret, which a reload of each agent in turn replaces.

    The new secret is added, becomes the first, and stays alone. After each reload both sign, and each
    publishes the other's key.
    """
    if not target.agent.runs:
        raise Inapplicable("process of its own")
    old, new = (secrets.token_hex(32) for _ in "ab")
    tables = signing(target.stage, _LONG_ROTATE, shared=True)
    files = {SECRETS: old}
    with own_bench(target, "orders", agents=2, override=tables, files=files, haproxy=False) as here:
        agents = [one.agent for one in here.loan.worlds]
        shown = [KeySets([agent], _LONG_ROTATE) for agent in agents]
        first = _cross(here, shown, "at the start")
        steps = {"added": [old, new], "put first": [new, old], "alone": [new]}
        for step, lines in steps.items():
            for number, agent in enumerate(agents):
                agent.put(SECRETS, "\n".join(lines))
                if not (said := agent.reload(here.loan.policy)).get("reloaded"):
                    raise here.failed(f"a sound file of secrets was turned down: {said}")
                signed = _cross(here, shown, f"the new secret {step}, in {number + 1} of 2 agents")
        if first & signed:
            raise here.failed("a secret that is in the file no longer still signs", received=f"{signed}")
    return f"{len(first | signed)} keys"


def _cross(here: Bench, shown: list[KeySets], when: str) -> set[str]:
    """Return which keys sign, of which each agent must publish all."""
    token, kids = here.token(sub=f"s-{secrets.token_hex(4)}"), set[str]()
    for one in here.loan.worlds:
        for _last in polls(here.seconds(_WITHIN)):
            answer = decide(one.agent.spop_address, iam_check(token, path="/orders/1"))
            if identity := answer.get("identity"):
                kids.add(str(jwt.get_unverified_header(str(identity))["kid"]))
                break
        else:
            raise here.failed(f"{when}: no identity was signed within {_WITHIN:g} s", received=f"{answer}")
    for number, sets in enumerate(shown, 1):
        if missing := kids - (published := sets.published()):
            what = f"{when}: a server that asks agent {number} for its keys must refuse what another signed"
            raise here.failed(what, expected=f"{sorted(missing)} published", received=f"{sorted(published)}")
    return kids
