"""Tokens that the mock cloud itself issues to a role (GetWebIdentityToken)."""

from __future__ import annotations

import secrets
import time

from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.engine.bench import bench, refused
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import part
from iamroles_scenarios.jose.shapes import AWS_NAMESPACE, iso

_DEPLOYS = "/deploys/7"
_OPEN = Expectation(
    status=200, allow=True, backend="deploys", role="arn:aws:iam::111111111111:role/deployer", issuer="cloud"
)


@check("identity.outbound.algorithms", "OUTBOUND-ALLOW-001", features={"oidc"})
def algorithms(target: Target) -> None:
    """The cloud's tokens under RS256 and ES384 open the role's route.

    The published RSA key names no `alg`; the request tags name another role.
    """
    with bench(target, "cloud") as here:
        cloud = target.stage.cloud
        keys = here.session("deployer")
        tags = [{"Key": "role", "Value": "arn:aws:iam::111111111111:role/nobody"}]
        for algorithm in ("RS256", "ES384"):
            token = cloud.web_identity_token(keys, "edge", algorithm=algorithm, Tags=tags)
            here.expect(f"a token under {algorithm}", token, _OPEN, path=_DEPLOYS)
        stranger = cloud.web_identity_token(here.session("passer-by"), "edge", Tags=tags)
        here.expect("another role's token", stranger, refused("no_grant", status=403), path=_DEPLOYS)


@check("identity.outbound.session-end", "OUTBOUND-SESSION-001", features={"oidc"})
def session_end(target: Target) -> None:
    """Access ends with the session that asked for the token, before exp.

    The variable `expires` says when. If the session goes on, the token ends at its own exp.
    """
    with bench(target, "identity") as here:
        for minutes in (2, 30):
            end = int(time.time()) + 60 * minutes
            token = here.token(
                "outbound",
                shape="aws",
                merge={AWS_NAMESPACE: {"original_session_exp": iso(end)}},
                sub=secrets.token_hex(4),
            )
            seen = here.ask(token)
            exp = part(token, 1)["exp"]
            got = int(seen.tags.get("expires") or 0)
            if not seen.allow or abs(got - min(exp, end)) > 2:
                message = f"exp is {exp}, the session ends at {end}, and access at {got}"
                raise here.failed(message, seen, f"expires {min(exp, end)}")
