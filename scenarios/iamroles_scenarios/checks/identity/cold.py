"""Issuers that are wrong from the start: down, of another name, or leading elsewhere.

The faults are in place before the agent starts, so it never sees a sound key set of these issuers. One agent
serves all flows; a sound issuer in the same policy must work as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from iamroles_scenarios.base.errors import Untestable, WaitTimeoutError
from iamroles_scenarios.base.polling import polls, rest
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import ALLOWED, UNAVAILABLE, Bench, Pending, bench, refused
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Worlds

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import IssuerHandle

_RECOVERY = 12.0
"""Seconds, times the scale, in which the agent takes the keys of an issuer that answers again."""
_PROMPT = 2.0
"""Seconds, times the scale: half as long as the agent waits for a dead issuer, and twice `keys.refresh`."""
_ON_ITS_WAY = 0.2
"""Seconds, times the scale, until the agent judges a question that was sent."""
_ELSEWHERE, _MIXED = "444444444444", "555555555555"
"""Accounts of the mock cloud, whose issuers live on another host than the mock IdP; `mixed` has its own."""
_prepared: WeakKeyDictionary[Worlds, bool] = WeakKeyDictionary()
_preparing = threading.Lock()


def _elsewhere(target: Target, account: str = _ELSEWHERE) -> IssuerHandle:
    """Return a sound issuer on another host, which no policy names."""
    return target.stage.cloud.account(account).issuer


def _prepare(target: Target) -> None:
    """Put the faults in place, once for each run."""
    with _preparing:
        if target.worlds in _prepared:
            return
        suffix = target.worlds.namespace
        evil = _elsewhere(target)
        keys = {
            name: target.worlds.issuer(name + suffix) for name in ("down", "dead", "mixed", "led", "moved")
        }
        keys["down"].fault("*", "status", status=503)
        keys["dead"].fault("*", "stall")
        jwks = f"{_elsewhere(target, _MIXED).url}/.well-known/jwks.json"
        other = {"issuer": f"{keys['mixed'].url}/", "jwks_uri": jwks}
        keys["mixed"].fault("discovery", "patch", members=other)
        keys["led"].fault("jwks", "redirect", location=f"{evil.url}/.well-known/jwks.json")
        keys["moved"].fault("discovery", "redirect", location=f"{evil.url}/.well-known/openid-configuration")
        _prepared[target.worlds] = True


@contextmanager
def _cold(target: Target) -> Iterator[Bench]:
    _prepare(target)
    with bench(target, "identity-cold") as here:
        yield here


@check("identity.cold.first-keys", "JWKS-OUTAGE-003", features={"oidc"})
def first_keys(target: Target) -> None:
    """Tokens get 503 until the first key set arrives, and pass once the issuer answers.

    As when an identity provider comes up after the agent.
    """
    with _cold(target) as here:
        keys = here.issuer("down")
        token = here.token("down", key="ES256")
        here.expect("without a key set", token, UNAVAILABLE)
        keys.clear()
        here.expect("once the issuer answers", token, ALLOWED, within=_RECOVERY)


@check("identity.cold.isolation", "JWKS-ISOLATION-001", features={"oidc"})
def isolation(target: Target) -> None:
    """An issuer that never answers holds up no token of another, and no fetch of another's new key."""
    with _cold(target) as here:
        keys = here.issuer("dead")
        before = keys.counters().get("discovery", 0)
        with suppress(WaitTimeoutError):  # an agent may ask only if a token comes
            keys.wait_for("discovery", before + 1, target.seconds(10.0))  # it has just tried again
        stuck = [Pending(here.another(), here.token("dead", key="ES256", sub=f"d{n}")) for n in range(5)]
        rest(target.seconds(_ON_ITS_WAY))
        here.issuer("sound").rotate("ES256")
        new = here.token("sound", key="ES256", sub="rotated")
        what = "a new key of a sound issuer beside a dead one"
        here.expect(what, new, ALLOWED, within=_PROMPT, prompt=_PROMPT)
        for number in range(5):
            token = here.token("sound", key="ES256", sub=f"guest-{number}")
            here.expect("a sound issuer beside a dead one", token, ALLOWED, prompt=_PROMPT)
        keys.clear()
        for question in stuck:
            question.answer(target.seconds(15.0))


@check("identity.cold.mix-up", "JWKS-DISCOVERY-001", features={"oidc"})
def mix_up(target: Target) -> None:
    """A discovery document of another issuer is not used.

    The document names the issuer with a slash, and keys that would verify the token.
    """
    with _cold(target) as here:
        evil, keys = _elsewhere(target, _MIXED), here.issuer("mixed")
        token = here.target.worlds.issuer(keys.name).mint({"roles": ["reader"], "key": "ES256"})
        forged = _forged(evil, keys)
        here.expect("keys of a document of another issuer", forged, UNAVAILABLE)
        here.expect("the issuer's own token", token, UNAVAILABLE)
        keys.clear()
        here.expect("once the document is the issuer's own", token, ALLOWED, within=_RECOVERY)
        here.expect("the forged token, then", forged, refused("key_unknown", "signature_invalid"))


@check("identity.cold.redirect", "JWKS-REDIRECT-001", features={"oidc"})
def redirect(target: Target) -> None:
    """A redirect to another host is not followed, for keys or for discovery.

    The other host would serve a key set that verifies the token.
    """
    with _cold(target) as here:
        evil = _elsewhere(target)
        before = evil.counters()
        answer = refused("keys_unavailable", "key_unknown", status=[401, 503])
        for name, endpoint in (("led", "jwks"), ("moved", "discovery")):
            keys = here.issuer(name)
            mark = keys.counters().get(endpoint, 0)
            for _last in polls(target.seconds(_RECOVERY)):
                here.expect(f"{name}: keys behind a redirect", _forged(evil, keys), answer)
                # When a worker calls again, its call before has shown where it leads.
                if keys.counters().get(endpoint, 0) > mark + here.loan.workers:
                    break
            else:
                raise Untestable(f"{name}: the agent does not ask for keys again")
        after = evil.counters()
        if after != before:
            raise here.failed(f"the agent followed a redirect to another host: {after}", expected=f"{before}")


def _forged(evil: IssuerHandle, keys: IssuerHandle) -> str:
    """Mint a token in one issuer's name by a key of another."""
    return evil.mint({"shape": "generic", "key": "RS256", "roles": ["reader"], "iss": keys.url})
