"""Key sets that change, lie and fail, in a world that renews them every second.

A key that must not verify is published *together with* a new good key. When a token of the good key passes,
the agent has read the set, and the bad key had its chance. If the agent must refuse a whole set, it is the
other way round: a new good key in it must not verify, though the agent fetched it, and the old key still
must. Once the set is mended the new key verifies, which shows that the set was at fault and not the key.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from iamroles_scenarios.base.errors import Inapplicable, WaitTimeoutError
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.engine.bench import ALLOWED, UNAVAILABLE, Bench, bench, refused
from iamroles_scenarios.engine.key_sets import keeping
from iamroles_scenarios.engine.observation import mismatches
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose import SigningKey, mint

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

MAX_STALE = 6.0
"""Seconds; as in the world `identity-stale`."""
_REWORDED = 4000
"""Bytes of a set with a member that is another at each fetch."""
_TAKEN = 12.0
"""Seconds, times the scale, until a new set is in force."""
_REFRESH, _LATE = 20.0, 1.0
"""Seconds: `keys.refresh` where renewals are timed; and, times the scale, by which one may be late."""
_STOPPED = 2.0
"""Seconds, times the scale, for which an agent is stopped, and as many as `keys.refresh` has."""
_OFTEN = 0.5
"""Seconds, times the scale: `keys.refresh` of an agent that is killed soon after a key was withdrawn."""
_OUTAGE = 2.5
"""Seconds, times the scale: `max_stale` of an agent that is stopped in an outage; its start takes less."""
_NOT_A_KEY = refused("key_unknown", "signature_invalid", "algorithm_not_allowed", "token_malformed")
_NOT_TAKEN = refused("key_unknown", "signature_invalid", "keys_unavailable", status=[401, 503])


def _by(keys: IssuerHandle, key: SigningKey, **recipe: Any) -> str:  # noqa: ANN401 - recipes hold anything
    """Mint a token of an issuer by a key that is not its own."""
    return mint({"roles": ["reader"], "alg": key.algorithm, **recipe}, [key], time.time(), keys.url)


for _row in table("bad_keys")["key"]:

    @check(_row["check"], _row["requirement"], title=_row["title"], features={"oidc"})
    def never_verifies(
        target: Target, issuer: str = _row["issuer"], poisons: dict[str, dict[str, Any]] = _row["poisons"]
    ) -> None:
        """Publish bad keys and a good one; the good one verifies, no bad one does, the old one still does."""
        with bench(target, "identity-keys") as here:
            keys = here.issuer(issuer)
            old = here.token(issuer, key="ES256")
            here.expect("before", old, ALLOWED, within=_TAKEN)
            bad = {kind: keys.poison(kind) for kind in poisons}
            good = keys.add_key("ES256")
            fresh = here.token(issuer, key=good.kid, sub="bob")
            here.expect("a good key beside a bad one", fresh, ALLOWED, within=_TAKEN)
            for kind, key in bad.items():
                if key is not None:
                    here.expect(f"the key {kind}", _by(keys, key, **poisons[kind]), _NOT_A_KEY)
            here.expect("the old key beside a bad one", old, ALLOWED)


def _spoil(keys: IssuerHandle, poison: str = "", crowd: int = 0, **fault: Any) -> SigningKey | None:  # noqa: ANN401
    """Break an issuer's set, or the answer with it, and return the key that it put there, if any."""
    if poison:
        return keys.poison(poison)
    if crowd:
        key = next(key for key in keys.keys if key.algorithm == "ES256")
        keys.publish(*(key.public_jwk(kid=f"{keys.name}-many-{number}") for number in range(crowd)))
    else:
        keys.fault("jwks", **fault)
    return None


for _row in table("bad_keys")["set"]:

    @check(_row["check"], _row["requirement"], title=_row["title"], features={"oidc"})
    def refused_whole(target: Target, spoils: dict[str, dict[str, Any]] = _row["spoils"]) -> None:
        """Spoil sets that have a new key in them: the last good ones stay in force until they are mended."""
        with bench(target, "identity-keys") as here:
            issuers = {name: here.issuer(name) for name in spoils}
            old = {name: here.token(name, key="ES256") for name in spoils}
            for name, token in old.items():
                here.expect(f"{name}: before", token, ALLOWED, within=_TAKEN)
            sound = {name: keys.jwks() for name, keys in issuers.items()}
            bad = {name: _spoil(issuers[name], **how) for name, how in spoils.items()}
            new = {name: keys.add_key("ES256") for name, keys in issuers.items()}
            marks = {name: keys.counters().get("jwks", 0) for name, keys in issuers.items()}
            for name, keys in issuers.items():
                # The first fetch from now may have begun before; the second gets the spoilt set.
                keys.wait_for("jwks", marks[name] + 2, target.seconds(10.0))
                keys.wait_for("jwks-done", marks[name] + 1, target.seconds(10.0))
                here.expect(f"{name}: the old key, after the bad set", old[name], ALLOWED)
                fresh = here.token(name, key=new[name].kid)
                here.expect(f"{name}: a new key out of the bad set", fresh, _NOT_TAKEN)
                if (key := bad[name]) is not None:
                    here.expect(f"{name}: the key that spoilt it", _by(keys, key), _NOT_TAKEN)
                keys.clear()
                keys.publish(new[name].public_jwk(), *sound[name], replace=True)
            for name in issuers:
                fresh = here.token(name, key=new[name].kid)
                here.expect(f"{name}: the new key in a mended set", fresh, ALLOWED, within=_TAKEN)


@check("identity.keys.outage", "JWKS-OUTAGE-001", features={"oidc"})
def outage(target: Target) -> None:
    """While the issuer is down the last good set serves.

    While three of the agent's calls fail, and for tokens that it never saw before.
    """
    with bench(target, "identity-keys") as here:
        keys = here.issuer("outage")
        here.expect("before", here.token("outage", key="ES256"), ALLOWED, within=_TAKEN)
        keys.fault("*", "cut")
        before = keys.counters()
        try:
            for number in range(3):
                _asked(here, keys, before, number + 1)
                here.expect("in an outage", here.token("outage", key="ES256", sub=f"guest-{number}"), ALLOWED)
        finally:
            keys.clear()


def _asked(
    here: Bench, keys: IssuerHandle, before: Mapping[str, int], times: int = 1, meanwhile: str = ""
) -> None:
    """Wait until the agent has made this many more requests than before, for discovery or for keys.

    A token, if there is one, passes meanwhile.
    """
    for _last in polls(here.target.seconds(10.0)):
        if meanwhile:
            here.expect("a known token, whose key set stays the same", meanwhile, ALLOWED)
        found = keys.counters()
        if any(found[name] >= before.get(name, 0) + times for name in ("discovery", "jwks") if name in found):
            return
    raise here.failed("the agent did not try to renew its keys within 10 s; refresh is 1 s")


def _still(here: Bench, what: str, token: str, until: float) -> None:
    """Hold a token to pass in an outage, until some epoch seconds."""
    seen = here.ask(token)
    here.in_time(until, "a question at the beginning of an outage", seen.at)
    if found := mismatches(ALLOWED, seen, {}):
        raise here.failed(f"{what}: {'; '.join(found)}", seen, ALLOWED)


@check("identity.keys.stale", "JWKS-OUTAGE-002", features={"oidc"})
def stale(target: Target) -> None:
    """After max_stale without fresh keys all tokens get 503, remembered ones too, until keys return.

    The outage begins later than max_stale after the first keys. That of another issuer begins before: its set
    had the same keys and another member each time. Until then a known token is asked about without a pause.
    """
    with bench(target, "identity-stale") as here:
        keys, other = here.issuer("stale"), here.issuer("reworded")
        known, others = (here.token(name, key="ES256") for name in ("stale", "reworded"))
        for token in (known, others):
            here.expect("before", token, ALLOWED, within=_TAKEN)
        other.fault("jwks", "oversized", size=_REWORDED)
        first, fresh = time.monotonic(), 0.0
        while time.monotonic() < first + 2 * MAX_STALE / 3:
            fresh = time.time()
            _asked(here, other, other.counters(), meanwhile=known)
        other.fault("jwks", "cut")
        while time.monotonic() < first + MAX_STALE:  # what is renewed starts to age again
            _asked(here, keys, keys.counters(), meanwhile=known)
        soon = time.time() + MAX_STALE / 2
        keys.fault("*", "cut")
        try:
            _still(here, "soon, with keys that came in other words", others, fresh + MAX_STALE)
            for _last in polls(MAX_STALE / 3):
                _still(here, "soon, with keys that were renewed", known, soon)
            here.expect("a known token, keys too stale", known, UNAVAILABLE, within=MAX_STALE + _TAKEN)
            here.expect(
                "a new token, keys too stale", here.token("stale", key="ES256", sub="bob"), UNAVAILABLE
            )
        finally:
            keys.clear()
            other.clear()
        here.expect("after the outage", known, ALLOWED, within=_TAKEN)


@check("identity.keys.renewed", "ROTATE-KEY-003", features={"oidc"}, long=True)
def renewed(target: Target) -> None:
    """Key set and discovery document are renewed within keys.refresh, as the issuer's counters show."""
    settings = {"refresh": f"{_REFRESH:g}s", "cooldown": "1s", "timeout": "3s"}
    with bench(target, "orders", "identity.keys.renewed", own=True, keys=settings) as here:
        here.expect("before", here.token(), ALLOWED, within=_TAKEN)
        keys = here.issuer()
        count, late = keys.counters(), target.seconds(_LATE)
        for one in (asked := ("discovery", "jwks")):
            keys.wait_for(one, count[one] + 1, 2 * _REFRESH + late)
        end = time.monotonic() + _REFRESH + late
        for one in asked:
            try:
                keys.wait_for(one, count[one] + 2, max(0.0, end - time.monotonic()))
            except WaitTimeoutError:
                expected = f"{one} is fetched within {_REFRESH:g} s"
                raise here.failed("a renewal was late", expected=expected) from None


@check("identity.keys.restart", "ROTATE-KEY-004", "JWKS-OUTAGE-002", features={"oidc"})
def restart(target: Target) -> None:
    """A key that was withdrawn while the agent was stopped opens nothing after the start.

    The agent is stopped for longer than `refresh`, and may keep its state. A set that it restores is as old
    as the stop was long. Another key is withdrawn after a reload; then the agent is killed and its issuer is
    down. After `max_stale` no set that the agent keeps over a stop opens anything.
    """
    if not target.agent.runs:
        raise Inapplicable("process of its own")
    refresh = target.seconds(_STOPPED)
    tables: dict[str, Any] = {
        "agent": keeping(target.stage),
        "keys": {"refresh": f"{refresh:g}s", "cooldown": "1s"},
    }
    with bench(target, "orders", "identity.keys.restart", own=True, **tables) as here:
        old = here.token()
        here.expect("before", old, ALLOWED, within=_TAKEN)
        here.close()
        here.world.agent.stop()
        here.issuer().rotate(overlap=False)
        rest(refresh)
        here.world.agent.start()
        back = here.another()
        back.expect("a key withdrawn before the start", old, _NOT_TAKEN, within=_LATE)
        back.expect("its successor", here.token(sub="bob"), ALLOWED, within=_TAKEN)
        if target.lacks(["reload"]):
            return
        renewed = {
            **here.loan.policy,
            "keys": {"refresh": f"{target.seconds(_OFTEN):g}s", "cooldown": "500ms"},
        }
        back.must_reload(renewed, "its keys are renewed often")
        keys, gone = here.issuer(), here.token()
        keys.rotate(overlap=False)
        keys.wait_for("jwks-done", keys.counters()["jwks-done"] + 3, target.seconds(_TAKEN))
        back.expect("a key withdrawn after a reload", gone, _NOT_TAKEN)
        back.close()
        keys.fault("*", "status", status=503)
        over = time.monotonic() + target.seconds(_OUTAGE)
        try:
            here.world.agent.kill()
            here.world.agent.start()
            back = here.another()
            back.expect("this key after a death, its issuer down", gone, _NOT_TAKEN)
            renewed["keys"]["max_stale"] = f"{target.seconds(_OUTAGE):g}s"
            back.must_reload(renewed, "its keys soon get stale")
            back.close()
            rest(over - time.monotonic())
            here.world.agent.stop()
            here.world.agent.start()
            what = "max_stale after an outage began, and a stop"
            here.another().expect(what, here.token(), UNAVAILABLE, within=_LATE)
        finally:
            keys.clear()
