"""Unknown kids: how often they may make the agent ask the issuer, and which tokens must not wait."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import Untestable
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.derived.world import iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.answers import refusal
from iamroles_scenarios.engine.bench import ALLOWED, Bench, Pending, SpopQuestion, bench, refused
from iamroles_scenarios.engine.observation import mismatches
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose import SigningKey
from iamroles_scenarios.wire.asker import Asker

COOLDOWN = 2.0
"""Seconds; as in the world `identity-kids`."""
_MORE = 0.1
"""Seconds by which the judge's clock and the agent's may differ in a cooldown."""
_UNKNOWN = refusal("key_unknown")
_STORM, _BESIDE = 300, 8
_STORMY = 3.0
"""Seconds: longer than a cooldown; an agent may hold a question back until the cooldown ends. The storm
of a slow host lasts up to four times this and the scale."""
_HERD = 12
_PROMPT = 4.0
"""Seconds, times the scale: an answer that comes sooner did not wait for a key set that takes twice as
long."""
_LATE = 8.0
"""Seconds, times the scale, by which a busy host may be late."""
_CROWD, _SLOW, _STALLED = 64, 2.0, 5.0
"""Unknown kids at a time; and seconds that a set takes at least, and that an issuer stalls at most: half of
`keys.timeout` (4.4)."""
_numbers = count(1)


def _stray(here: Bench, issuer: str) -> str:
    """Mint a token under a kid of no key."""
    return here.token(issuer, key="unknown-kid", alg="ES256")


def _fetches(here: Bench, issuer: str) -> int:
    return here.issuer(issuer).counters().get("jwks", 0)


def _most(elapsed: float) -> int:
    """Return how many fetches unknown kids may cause in this time (seconds)."""
    return math.ceil(elapsed / COOLDOWN) + 1


def _before(here: Bench, issuer: str) -> None:
    """Have a token accepted, and rest: an agent may count the fetch for it, too."""
    here.expect("before", here.token(issuer, key="ES256"), ALLOWED)
    rest(here.seconds(COOLDOWN + _MORE))


def _storm(here: Bench, any_worker: Asker, sets: list[list[dict[str, Any]]]) -> None:
    """Ask with random kids while the issuer publishes these sets in turn.

    Of several sets one worker is asked: the second would fetch the set that the first has just got. Once an
    answer was held back, any worker is asked, and several questions side by side.
    """
    keys, strays = here.issuer("storm"), [_stray(here, "storm") for _ in range(_STORM)]
    askers = here.spread.askers()[: 1 if len(sets) > 1 else None]
    before, began = _fetches(here, "storm"), time.monotonic()
    sent, window = 0, 1
    while sent < _STORM:
        elapsed = time.monotonic() - began
        if elapsed > _STORMY and (sent > 2 * _most(elapsed) or elapsed > here.seconds(4 * _STORMY)):
            break
        if len(sets) > 1:
            keys.publish(*sets[sent // window % len(sets)], replace=True)
        tokens = strays[sent : sent + window]
        asked = [SpopQuestion("a random kid", iam_check(one, path="/orders/1"), _UNKNOWN) for one in tokens]
        for asker in askers:
            here.judge(asked, here.actions(asked, window=window, of=asker))
        sent += len(asked)
        if time.monotonic() - began - elapsed > COOLDOWN / 2:
            askers, window = [any_worker], _BESIDE
    elapsed = time.monotonic() - began
    made = _fetches(here, "storm") - before
    most = _most(elapsed)
    if sent <= 2 * most:
        raise Untestable(f"only {sent} questions were answered in {elapsed:.1f} s: too few for a storm")
    if made > most:
        raise here.failed(
            f"{sent} random kids in {elapsed:.1f} s caused {made} fetches, cooldown {COOLDOWN:g} s",
            expected=f"at most {most} fetches",
        )


@check("identity.kids.storm", "JWKS-STORM-001", features={"oidc"})
def storm(target: Target) -> None:
    """Hundreds of random kids cause at most one fetch in each cooldown, also if each fetch changes the set.

    As from two servers of an issuer that disagree. The check reads the issuer's own counter.
    """
    with (
        bench(target, "identity-kids") as here,
        here.asking(),
        Asker(here.world.agent.spop_address, timeout=here.seconds(_LATE)) as any_worker,
    ):
        here.expect("before the storm", here.token("storm", key="ES256"), ALLOWED)
        own = here.issuer("storm").jwks()
        with_another = SigningKey.generate("ES256", kid="of-another-server").public_jwk()
        # First, before any cooldown holds its fetches back.
        _storm(here, any_worker, [[*own, with_another], own])
        _storm(here, any_worker, [own])
        here.expect("after the storm", here.token("storm", key="ES256", sub=f"s{next(_numbers)}"), ALLOWED)


@check("identity.kids.unnoticed", "JWKS-STORM-002", features={"oidc"})
def unnoticed(target: Target) -> None:
    """While unknown kids wait for a stalled issuer, known keys of that issuer verify at once.

    None of them, however many, is answered with 503 (10.1).
    """
    with bench(target, "identity-kids") as here, here.asking(), ThreadPoolExecutor() as pool:
        keys = here.issuer("stall")
        _before(here, "stall")
        before, began = _fetches(here, "stall"), time.time()
        strays = [iam_check(_stray(here, "stall"), path="/orders/1") for _ in range(_CROWD)]
        asked = [SpopQuestion("one of many unknown kids", each, _UNKNOWN) for each in strays]
        keys.fault("jwks", "stall", times=1)
        try:
            ask = [recording.carried(one.actions_of) for one in here.spread.askers()]
            stuck = [pool.submit(one, [(each, None) for each in strays], window=_CROWD) for one in ask]
            keys.wait_for("jwks", before + 1, target.seconds(10.0))
            for number in range(5):
                token = here.token("stall", key="ES256", sub=f"guest-{number}")
                here.expect("a known key beside a stalled fetch", token, ALLOWED, prompt=_PROMPT)
            here.in_time(began + _STALLED, "an end of the stall before the agent gives it up")
        finally:
            keys.clear()
        for each in stuck:
            here.judge(asked, each.result())


@check("identity.kids.herd", "JWKS-FETCH-002", features={"oidc"})
def herd(target: Target) -> None:
    """Tokens that wait for one new key share one fetch, and all are accepted.

    As in the first second after a rotation, with a slow issuer.
    """
    with bench(target, "identity-kids") as here:
        keys = here.issuer("herd")
        _before(here, "herd")
        key = keys.add_key("ES256")
        tokens = [here.token("herd", key=key.kid, sub=f"guest-{number}") for number in range(_HERD)]
        before = _fetches(here, "herd")
        keys.fault("jwks", "slow", seconds=max(_SLOW, target.seconds(0.8)))
        try:
            waiting = [Pending(here.another(), token) for token in tokens]
            seen = [question.answer(target.seconds(15.0)) for question in waiting]
        finally:
            keys.clear()
        if lost := [answer for answer in seen if mismatches(ALLOWED, answer, {})]:
            message = f"{len(lost)} of {_HERD} tokens of a new key were refused while it was fetched"
            raise here.failed(message, lost[0], "all allowed")
        if (made := _fetches(here, "herd") - before) > 2:
            message = f"{_HERD} tokens of a single new key caused {made} fetches"
            raise here.failed(message, expected="one fetch (two at most)")


@check("identity.kids.rotation", "JWKS-FETCH-001", features={"oidc"})
def rotation(target: Target) -> None:
    """A key rotated right after a fetch, or after a failed fetch, is accepted within the cooldown.

    Twice in a row, then once inside the cooldown that a random kid began. No renewal helps here.
    """
    with bench(target, "identity-kids", keys={"cooldown": f"{target.seconds(COOLDOWN):g}s"}) as here:
        keys = here.issuer("rotating")
        here.expect("before", here.token("rotating", key="ES256"), ALLOWED)
        for which in ("first", "second"):
            token = here.token("rotating", key=keys.rotate("ES256").kid)
            here.expect(f"the {which} of two rotations", token, ALLOWED, within=COOLDOWN + _LATE)
        here.expect("a random kid", _stray(here, "rotating"), refused("key_unknown"), within=COOLDOWN)
        key = keys.rotate("ES256")
        token = here.token("rotating", key=key.kid)
        here.expect("rotated inside the cooldown of a failed ask", token, ALLOWED, within=COOLDOWN + _LATE)
