"""Strangers and their servers: a key server that drips, forged STS credentials, one kid for two keys."""

from __future__ import annotations

import threading

from iamroles_scenarios.checks.identity.caller import WORLD
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import ALLOWED, Bench, bench, beside, refused
from iamroles_scenarios.engine.target import Target

_RECOVERY = 15.0
"""Seconds, times the scale, in which the agent takes the keys of a server that answers again."""
_GIVE_UP = 9.0
"""Seconds, times the scale: the world's `keys.timeout` is 4 s."""
_GIVEN_UP = refused("keys_unavailable", "key_unknown", "internal_error", status=[503, 401])
_FORGED, _GOOD = 120, 12
"""Credentials of the flood, and of the caller that must be served beside it."""
_SHUT_OUT = refused("sts_rejected", "sts_unavailable", "token_expired", status=[401, 503])


@check("identity.hold.drip", "JWKS-DRIP-001", features={"oidc"})
def drip(target: Target) -> None:
    """A key server that drips is given up, delays no other issuer, and is believed once it is sound.

    It sends one byte each fifth of a second: a timeout for each read would never come.
    """
    with bench(target, "identity-cold", "identity.hold.drip", own=True) as here:
        keys = here.issuer("sound")
        keys.fault("jwks", "drip", seconds=0.2)
        keys.rotate("ES256")
        for sub in ("alice", "bob"):
            token = here.token("sound", key="ES256", sub=sub)
            here.expect("a token whose key is on its way in drips", token, _GIVEN_UP, prompt=_GIVE_UP)
            here.expect("another issuer", here.token("led", key="ES256", sub=sub), ALLOWED, prompt=_GIVE_UP)
        keys.clear()
        token = here.token("sound", key="ES256", sub="carol")
        here.expect("once the server is sound", token, ALLOWED, within=_RECOVERY)


@check("identity.hold.forged", "STS-FLOOD-001", features={"sts"})
def forged(target: Target) -> None:
    """Forged STS credentials starve no caller whom STS confirms.

    Each forged credential is well formed and costs a call of STS; the caller's credentials come in
    between.
    """
    with bench(target, WORLD, flow="forged") as here:
        here.expect("the caller, alone", here.credential(here.reader, expires=300), ALLOWED)
        numbers = iter(range(_FORGED))

        def flood(stranger: Bench, _ended: threading.Event) -> None:
            for number in numbers:
                bad = here.credential(here.reader, secret="wrong", expires=301 + number)  # noqa: S106
                stranger.expect("a forged credential", bad, _SHUT_OUT)

        with beside(here, flood, 4):
            for number in range(_GOOD):
                good = here.credential(here.reader, expires=500 + number)
                here.expect(f"the caller beside the flood, {number + 1} of {_GOOD}", good, ALLOWED)


@check("identity.hold.shared-kid", "JWKS-SET-006", features={"oidc"})
def shared_kid(target: Target) -> None:
    """An RSA and an EC key may share a kid, and tokens of either are accepted.

    The RFC's own example: keys of different types are equivalent alternatives under one `kid`.
    """
    with bench(target, "identity-cold", "identity.hold.shared-kid", own=True) as here:
        keys = here.issuer("sound")
        for alg in ("RS256", "ES256"):
            keys.add_key(alg, kid="shared")
        for alg in ("RS256", "ES256"):
            token = here.token("sound", key=alg)
            here.expect(f"{alg} under the shared kid", token, ALLOWED, within=_RECOVERY)
