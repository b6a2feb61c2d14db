"""The claims in which each kind of issuer puts roles, client, session and scope.

One table for both sides: the mock IdP's token endpoint and the suite's minting. A shape is the claims of a
valid token *without* iss, times and jti, which are the same everywhere.
"""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

DEFAULT_ACCOUNT = "111111111111"
DEFAULT_AUDIENCE = "edge"


@dataclass(frozen=True)
class Subject:
    """The subject of a token."""

    sub: str = "alice"
    audience: Any = DEFAULT_AUDIENCE
    client: str = "orders-client"
    account: str = DEFAULT_ACCOUNT
    roles: Sequence[str] = ()
    preferred_role: str | None = None
    scope: str | None = None
    now: int = 0


def role_arn(word: str, account: str = DEFAULT_ACCOUNT) -> str:
    """`reader` becomes `arn:aws:iam::111111111111:role/reader`; anything with `:` or `/` is kept."""
    return word if re.search("[:/]", word) else f"arn:aws:iam::{account}:role/{word}"


def _present(**claims: object) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if value is not None and value != []}


def _generic(who: Subject) -> dict[str, Any]:
    return _present(
        sub=who.sub,
        aud=who.audience,
        roles=list(who.roles),
        preferred_role=who.preferred_role,
        scope=who.scope,
    )


def _okta(who: Subject) -> dict[str, Any]:
    return _present(
        ver=1, sub=who.sub, aud=who.audience, cid=who.client, uid="00u1a2b3c4d5e6f7g8h9",
        scp=who.scope.split() if who.scope else None, groups=list(who.roles),
    )  # fmt: skip


def _cognito(who: Subject) -> dict[str, Any]:
    """Access token: no `aud`, `client_id` stands for it."""
    use = {"token_use": "access"}
    client = who.audience if isinstance(who.audience, str) else who.client
    return _present(
        sub=who.sub, client_id=client, username=who.sub, version=2, auth_time=who.now,
        scope=who.scope, event_id=str(uuid.uuid4()), origin_jti=str(uuid.uuid4()),
        **use,
        **{
            "cognito:groups": [role.rsplit("/", 1)[-1] for role in who.roles],
            "cognito:roles": list(who.roles),
            "cognito:preferred_role": who.preferred_role,
        },
    )  # fmt: skip


def _cognito_id(who: Subject) -> dict[str, Any]:
    claims = _cognito(who)
    del claims["client_id"], claims["username"], claims["version"]
    return claims | {"token_use": "id", "aud": who.audience, "cognito:username": who.sub}


def _entra(who: Subject) -> dict[str, Any]:
    return _present(
        sub=who.sub, aud=who.audience, ver="2.0", tid="72f988bf-86f1-41af-91ab-2d7cd011db47",
        oid="00000000-0000-0000-66f3-3332eca7ea81", azp=who.client, azpacr="1", preferred_username=who.sub,
        roles=list(who.roles), scp=who.scope,
    )  # fmt: skip


def _keycloak(who: Subject) -> dict[str, Any]:
    return _present(
        sub=who.sub, aud=who.audience, typ="Bearer", azp=who.client, sid=str(uuid.uuid4()), acr="1",
        realm_access={"roles": list(who.roles)}, resource_access={who.client: {"roles": list(who.roles)}},
        scope=who.scope, preferred_username=who.sub,
    )  # fmt: skip


def _github(who: Subject) -> dict[str, Any]:
    return _present(
        sub=f"repo:acme/{who.sub}:ref:refs/heads/main", aud=who.audience, repository=f"acme/{who.sub}",
        repository_owner="acme", ref="refs/heads/main", sha="f00dfeedf00dfeedf00dfeedf00dfeedf00dfeed",
        workflow="deploy", job_workflow_ref=f"acme/{who.sub}/.github/workflows/deploy.yml@refs/heads/main",
        run_id="1234567890", actor="octocat", event_name="push", runner_environment="github-hosted",
        roles=list(who.roles), scope=who.scope,
    )  # fmt: skip


AWS_NAMESPACE = "https://sts.amazonaws.com/"


def _aws(who: Subject) -> dict[str, Any]:
    """GetWebIdentityToken: `sub` is the principal's ARN, AWS facts are nested."""
    arn = who.roles[0] if who.roles else who.sub
    account = arn.split(":")[4] if arn.startswith("arn:") and arn.count(":") >= 5 else who.account
    return {
        "sub": arn,
        "aud": who.audience,
        AWS_NAMESPACE: {
            "aws_account": account,
            "source_region": "us-east-1",
            "org_id": "o-abcd1234",
            "principal_id": arn,
            "original_session_exp": iso(who.now + 3600),
        },
    }


def iso(epoch: float) -> str:
    """`2026-01-02T03:04:05Z`."""
    return dt.datetime.fromtimestamp(epoch, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class Shape:
    """How an issuer writes its tokens."""

    claims: Callable[[Subject], dict[str, Any]]
    typ: str | None = "JWT"
    """`typ` header; None: the issuer writes none."""


SHAPES: dict[str, Shape] = {
    "generic": Shape(_generic),
    "rfc9068": Shape(lambda who: _generic(who) | {"client_id": who.client}, typ="at+jwt"),
    "okta": Shape(_okta, typ=None),
    "cognito": Shape(_cognito, typ=None),
    "cognito-id": Shape(_cognito_id, typ=None),
    "entra": Shape(_entra),
    "keycloak": Shape(_keycloak),
    "github": Shape(_github),
    "aws": Shape(_aws),
}
