"""Policies that would weaken the check of credentials: an agent refuses them, or does not obey them.

An agent may refuse to load such a policy, or read it in the only safe way; it must not load it and do what it
says. The checks use one agent one after the other, and each puts the sound policy back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from iamroles_scenarios.base.errors import CheckFailed, Evidence
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import merged
from iamroles_scenarios.engine.bench import ALLOWED, Bench, bench, refused
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.shapes import AWS_NAMESPACE

_one_at_a_time = threading.Lock()
_FORGED = refused("algorithm_not_allowed", "token_malformed", "key_unknown", "signature_invalid")


@contextmanager
def _taken_up(target: Target, **override: Any) -> Iterator[Bench | None]:  # noqa: ANN401 - a policy's tables
    """Yield the bench under a changed policy; None if the agent refused it, and the old policy holds."""
    large = {"max_token_bytes": 8000}
    with _one_at_a_time, bench(target, "identity", changes=True, limits=large) as here:
        here.expect("the sound policy", here.token("corp"), ALLOWED)
        if not here.reload(merged(here.loan.policy, override))["reloaded"]:
            here.expect("the sound policy, after a refused one", here.token("corp", sub="bob"), ALLOWED)
            yield None
            return
        try:
            yield here
        finally:
            if not here.reload(here.loan.policy)["reloaded"]:
                raise here.failed("the sound policy was refused", expected="reloaded")


@check("identity.policy.none", "JWT-ALG-001", features={"oidc", "reload"})
def none(target: Target) -> None:
    """No policy can switch the algorithm none on."""
    with _taken_up(target, issuers=[{"name": "corp", "algorithms": ["RS256", "none"]}]) as here:
        if here is not None:
            here.expect("alg none under such a policy", here.token("corp", alg="none"), _FORGED)


@check("identity.policy.hmac", "JWT-ALG-002", features={"oidc", "reload"})
def hmac(target: Target) -> None:
    """No policy can switch an HMAC on."""
    with _taken_up(target, issuers=[{"name": "corp", "algorithms": ["RS256", "HS256"]}]) as here:
        if here is not None:
            for secret in ("public-key", "public-der", "public-jwk", "certificate", "kid", "empty-key"):
                token = here.token("corp", confusion=f"hs256-with-{secret}")
                here.expect(f"an HMAC with {secret} under such a policy", token, _FORGED)


@check("identity.policy.plain-http", "JWKS-DISCOVERY-002", features={"oidc", "reload"})
def plain_http(target: Target) -> None:
    """An issuer of plain http is called only if the policy says so."""
    name = f"plain-{target.worlds.namespace}".rstrip("-")
    keys = target.stage.idp.issuer(name)
    entry = {"name": "plain", "issuer": keys.url, "audiences": ["edge"], "algorithms": ["ES256"]}
    with _taken_up(target, issuers=[entry]) as here:
        if here is not None:
            token = keys.mint({"roles": ["reader"], "key": "ES256"})
            here.expect("an issuer of plain http", token, refused("keys_unavailable", status=503))
    if any(keys.counters().values()):
        raise CheckFailed(
            f"an issuer of plain http was called: {keys.counters()}", Evidence(expected="no call")
        )


@check("identity.policy.role-path", "PRINCIPAL-ARN-004", features={"oidc", "reload"})
def role_path(target: Target) -> None:
    """A mapping with a role path is refused, or matches without its path.

    The session of such a role has lost the path.
    """
    arn = "arn:aws:iam::111111111111:role/team/orders/reader"
    with _taken_up(target, roles=[{"name": "reader", "arn": arn}]) as here:
        if here is not None:
            token = here.token("corp", roles=["arn:aws:sts::111111111111:assumed-role/reader/pipeline-1"])
            here.expect("a session of a role that is mapped with its path", token, ALLOWED)


@check("identity.policy.request-tags", "OUTBOUND-TAGS-001", features={"oidc", "reload"})
def request_tags(target: Target) -> None:
    """No policy can read roles or scopes out of request tags.

    The caller chooses its own tags, so `roles_claim` and `scope_claim` must not reach them.
    """
    path = [AWS_NAMESPACE, "request_tags", "role"]
    admin = "arn:aws:iam::111111111111:role/admin"
    closed = refused("no_grant", "role_missing", "role_malformed", "claim_invalid", status=[401, 403])
    for profile, issuer in (("aws", "outbound"), ("generic", "corp")):
        entry = {"name": issuer, "profile": profile, "roles_claim": path}
        with _taken_up(target, issuers=[entry]) as here:
            if here is not None:
                tags = {AWS_NAMESPACE: {"request_tags": {"role": [admin]}}}
                token = here.token(issuer, shape="aws", merge=tags)
                here.expect("a role out of request tags", token, closed, path="/admin")
    with _taken_up(target, issuers=[{"name": "outbound", "scope_claim": path}]) as here:
        if here is not None:
            scope = {AWS_NAMESPACE: {"request_tags": {"role": "orders"}}}
            token = here.token("outbound", shape="aws", merge=scope)
            closed = refused("scope_insufficient", "claim_invalid", status=[401, 403])
            here.expect("a scope out of request tags", token, closed)
