"""Every algorithm that SPEC.md 5.10 names: a policy with it alone, and tokens by every other."""

from __future__ import annotations

import time
from collections.abc import Iterator

from iamroles_scenarios.checks.derived.issuers import entry
from iamroles_scenarios.checks.derived.world import derived, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.answers import ALLOW, REFUSE
from iamroles_scenarios.engine.bench import Bench, SpopQuestion
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose import SigningKey, mint

NEEDED = ("RS256", "ES256", "ES384")
OPTIONAL = ("RS384", "RS512", "PS256", "PS384", "PS512", "ES512", "EdDSA", "Ed25519")
"""An agent may lack these: it then turns down a policy that names one."""
NEVER = ("none", "HS256", "HS384", "HS512")
_URL = "https://algorithms.kiosk.example"
_CURVES = {"ES256": "ES256", "ES384": "ES384", "ES512": "ES512", "EdDSA": "EdDSA", "Ed25519": "Ed25519"}


def _tokens(here: Bench, keys: dict[str, SigningKey], now: float) -> Iterator[tuple[str, str]]:
    """Mint a token by each algorithm, and forgeries under the names of those that no policy can name."""
    for name in (*NEEDED, *OPTIONAL):
        yield name, mint({"roles": ["kiosk"], "alg": name}, [keys.get(name, keys["RSA"])], now, _URL)
    for name in NEVER:
        forged = {"confusion": f"{name.lower()}-with-public-key"} if name != "none" else {"alg": "none"}
        yield name, mint({"roles": ["kiosk"], **forged}, [keys["RSA"]], now, _URL)
    wide = here.issuer("algorithms").add_key("EdDSA", curve="Ed448", sign=False)
    yield (
        "Ed25519 by a key of Ed448",
        mint({"roles": ["kiosk"], "header": {"alg": "Ed25519"}}, [wide], now, _URL),
    )


@check("identity.derived.algorithms", "DERIVED-ALGORITHM-001", features={"oidc", "reload"})
def algorithms(target: Target) -> str:
    """A policy that names one algorithm lets in only tokens by this algorithm, or is turned down.

    All algorithms share one key set. The RSA key does not name its algorithm, so the policy alone
    decides.
    """
    with derived(target, "identity.derived.algorithms") as here:
        issuer = here.issuer("algorithms")
        keys = {name: issuer.add_key(name) for name in _CURVES}
        keys["RSA"] = SigningKey.generate("RS256", kid="any")
        issuer.publish({name: value for name, value in keys["RSA"].public_jwk().items() if name != "alg"})
        tokens = dict(_tokens(here, keys, time.time()))
        lacking = []
        for name in (*NEEDED, *OPTIONAL):
            own = entry(0, issuer=_URL, jwks_uri=f"{issuer.url}/jwks", algorithms=[name])
            policy = {**here.loan.policy, "issuers": [*here.loan.policy["issuers"], own]}
            if not here.reload(policy).get("reloaded"):
                lacking.append(name)
                if name in NEEDED:
                    here.note_wrong(f"a policy with {name} was turned down")
                continue
            questions = [
                SpopQuestion(
                    f"a token by {by} under {name}", iam_check(token), ALLOW if by == name else REFUSE
                )
                for by, token in tokens.items()
            ]
            here.wait_for_keys([each for each in questions if each.expected is ALLOW])
            here.ask_all(questions)
    return f"{here.asked} questions; not offered: {', '.join(lacking) or 'none'}"
