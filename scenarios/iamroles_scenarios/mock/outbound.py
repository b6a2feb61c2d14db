"""Outbound identity federation: GetWebIdentityToken, each account its own issuer with rotating keys.

The issuers are those of the mock IdP, so rotation, poison, faults, counters and minting work on them alike;
only their documents are AWS's: `/.well-known/jwks.json`, RS256 and ES384, an RSA key without `alg`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from iamroles_scenarios.jose import mint
from iamroles_scenarios.jose.shapes import AWS_NAMESPACE, iso
from iamroles_scenarios.mock.credentials import AwsError, Credential
from iamroles_scenarios.mock.idp import Idp
from iamroles_scenarios.mock.issuer import Issuer

ALGORITHMS = ("RS256", "ES384")
REGION = "us-east-1"
ORGANISATION = "o-a1b2c3d4e5"
_NAMESPACE = uuid.UUID("6f3d4a52-7c1e-4c0f-9c55-0d2c5f4f7a10")


class Outbound:
    """Issuers by account."""

    def __init__(self, idp: Idp) -> None:
        self._idp = idp
        self._disabled: set[str] = set()
        self._making = asyncio.Lock()

    async def issuer(self, account: str) -> Issuer:
        """The account's issuer; made, with an RS256 and an ES384 key, when first asked for."""
        name = str(uuid.uuid5(_NAMESPACE, account))
        async with self._making:
            issuer = self._idp.find(name)
            if issuer is None:
                issuer = Issuer(name, f"{self._idp.url}/{name}", "aws", jwks_path=".well-known/jwks.json")
                issuer.rsa_alg = False
                for algorithm in reversed(ALGORITHMS):
                    issuer.add(await asyncio.to_thread(issuer.new_key, algorithm))
                self._idp.put(issuer)
        return issuer

    def enable(self, account: str, enabled: bool) -> None:
        """Switch the account's federation; it is on from the start (on AWS it is off)."""
        (self._disabled.discard if enabled else self._disabled.add)(account)

    def enabled(self, account: str) -> bool:
        """Return whether the account may call GetWebIdentityToken."""
        return account not in self._disabled

    async def token(
        self,
        caller: Credential,
        parameters: Mapping[str, str],
        duration: int,
        tags: Mapping[str, str],
        now: float,
    ) -> tuple[str, int]:
        """A JWT about the caller, and when it ends.

        Raises:
            AwsError: federation is off; a bad parameter; longer than the session.
        """
        if not self.enabled(caller.account):
            raise AwsError(403, "OutboundWebIdentityFederationDisabledException", "Federation is not enabled")
        audiences = [each["value"] for each in members(parameters, "Audience", ())]
        algorithm = parameters.get("SigningAlgorithm", "")
        if not 1 <= len(audiences) <= 10 or algorithm not in ALGORITHMS:
            raise AwsError(400, "ValidationError", "Audience or SigningAlgorithm is missing or invalid")
        if caller.expires is not None and now + duration > caller.expires:
            escalation = "The token would outlive the calling session"
            raise AwsError(403, "SessionDurationEscalationException", escalation)
        mode, scope = parameters.get("SubjectMode", "AWSIdentity"), parameters.get("Scope")
        if scope is not None and (mode != "OriginIdentity" or len(audiences) != 1):
            raise AwsError(400, "ValidationError", "Scope needs SubjectMode OriginIdentity and one audience")
        issuer = await self.issuer(caller.account)
        recipe: dict[str, Any] = {
            "base": "empty", "alg": algorithm, "typ": "JWT", "iat": "0s", "exp": f"+{duration}s",
            "claims": {
                "iss": issuer.url, "sub": _subject(caller, mode), "jti": str(uuid.uuid4()),
                "aud": audiences[0] if len(audiences) == 1 else audiences,
                AWS_NAMESPACE: _facts(caller, parameters, tags),
            },
        }  # fmt: skip
        if mode == "OriginIdentity":
            recipe["claims"] |= {"subject_mode": mode} | ({"scope": scope} if scope else {})
        issuer.counters.add("minted")
        return mint(recipe, issuer.signing, now, issuer.url), int(now) + duration


def _subject(caller: Credential, mode: str) -> str:
    if mode == "AWSIdentity":
        return caller.role_arn or caller.arn
    if mode != "OriginIdentity" or not caller.source_identity:
        raise AwsError(
            400, "ValidationError", "SubjectMode OriginIdentity needs a session with an origin identity"
        )
    if caller.source_identity.lower().startswith("arn:"):
        raise AwsError(403, "AccessDenied", "The origin's subject must not begin with arn:")
    return caller.source_identity


def _facts(caller: Credential, parameters: Mapping[str, str], tags: Mapping[str, str]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "aws_account": caller.account,
        "source_region": REGION,
        "org_id": ORGANISATION,
        "principal_id": caller.role_arn or caller.arn,
    }
    if principal_tags := {**tags, **caller.tags}:
        facts["principal_tags"] = principal_tags
    request_tags = {tag["Key"]: tag["Value"] for tag in members(parameters, "Tags", ("Key", "Value"))}
    if request_tags:
        facts["request_tags"] = request_tags
    if caller.expires is not None:
        facts["original_session_exp"] = iso(caller.expires)
    return facts


def members(parameters: Mapping[str, str], name: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """A list of the query protocol: `Name.member.1` (as `value`), or `Name.member.1.Key` for structures."""
    found = []
    for number in range(1, 101):
        prefix = f"{name}.member.{number}"
        each = {
            field: parameters[f"{prefix}.{field}"] for field in fields if f"{prefix}.{field}" in parameters
        }
        if not fields and prefix in parameters:
            each = {"value": parameters[prefix]}
        if not each:
            break
        found.append(each)
    return found
