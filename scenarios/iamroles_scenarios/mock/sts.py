"""The STS actions of the mock cloud: who may do what, on top of moto's roles and sessions.

Each action takes its parameters (and the caller, where it is signed) and returns the result's fields. moto
makes the role session and its keys; the front decides before whether it may exist, and how long it lives.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from typing import Any

from iamroles_scenarios.jose.shapes import iso
from iamroles_scenarios.mock import trust, web_identity
from iamroles_scenarios.mock.credentials import AwsError, Credential, Registry
from iamroles_scenarios.mock.moto_store import MotoStore, new_key_id, texts
from iamroles_scenarios.mock.outbound import Outbound, members

_ROLE_ARN = re.compile(
    r"arn:aws[a-z-]*:iam::(?P<account>\d{12}):role/(?:[\x21-\x7e]+/)?(?P<name>[\w+=,.@-]{1,64})"
)
_SESSION_NAME = re.compile(r"[\w+=,.@-]{2,64}")
_HOUR = 3600

Parameters = Mapping[str, str]
Result = dict[str, Any]


class Sts:
    """State and actions."""

    def __init__(self, registry: Registry, store: MotoStore, outbound: Outbound) -> None:
        self._registry = registry
        self._store = store
        self._outbound = outbound
        self.lifetime: float | None = None
        """On command: seconds that new sessions live, whatever was asked; under AWS's minimum of 900."""

    async def get_caller_identity(self, caller: Credential, _: Parameters) -> Result:
        return {"Arn": caller.arn, "UserId": caller.user_id, "Account": caller.account}

    async def get_access_key_info(self, _caller: Credential, parameters: Parameters) -> Result:
        """The account of an access key."""
        held = self._registry.get(parameters.get("AccessKeyId", ""))
        if held is None:
            raise AwsError(403, "AccessDenied", "No such access key")
        return {"Account": held.account}

    async def assume_role(self, caller: Credential, parameters: Parameters) -> Result:
        """A session of a role whose trust policy names the caller."""
        role, duration = await self._assumable(parameters, chained=caller.session)
        principals = [caller.arn, f"arn:aws:iam::{caller.account}:root"]
        if caller.role_arn:
            principals.append(caller.role_arn)
        context = {"sts:ExternalId": _optional(parameters, "ExternalId")}
        context |= {"sts:RoleSessionName": [parameters["RoleSessionName"]]}
        context |= {"sts:SourceIdentity": _optional(parameters, "SourceIdentity")}
        context |= {
            "aws:PrincipalArn": [caller.role_arn or caller.arn],
            "aws:PrincipalAccount": [caller.account],
        }
        if role is None or not trust.allows(role["trust"], "sts:AssumeRole", principals, context):
            raise _denied(caller.arn, "sts:AssumeRole", parameters["RoleArn"])
        return await self._session(role, parameters, duration, source=caller.source_identity)

    async def assume_role_with_web_identity(self, parameters: Parameters) -> Result:
        """A session for the bearer of an OIDC token; unsigned, as on AWS."""
        role, duration = await self._assumable(parameters)
        token = parameters.get("WebIdentityToken", "")
        issuer = web_identity.unverified_issuer(token)
        account = parameters["RoleArn"].split(":")[4]
        provider = f"arn:aws:iam::{account}:oidc-provider/{issuer.partition('://')[2]}"
        client_ids = await self._store.provider(provider)
        if client_ids is None:
            raise AwsError(
                400, "InvalidIdentityToken", f"No OpenIDConnect provider found in your account for {issuer}"
            )
        identity = await web_identity.verify(token, issuer)
        if not set(identity.audiences) & set(client_ids):
            raise AwsError(400, "InvalidIdentityToken", "Incorrect token audience")
        action = "sts:AssumeRoleWithWebIdentity"
        if role is None or not trust.allows(role["trust"], action, [provider], identity.context()):
            raise AwsError(403, "AccessDenied", f"Not authorized to perform {action}")
        result = await self._session(role, parameters, duration)
        return result | {
            "SubjectFromWebIdentityToken": identity.sub,
            "Audience": identity.audiences[0],
            "Provider": provider,
        }

    async def get_session_token(self, caller: Credential, parameters: Parameters) -> Result:
        """Temporary credentials of a user; a session may not ask."""
        if caller.session:
            raise AwsError(403, "AccessDenied", "Cannot call GetSessionToken with session credentials")
        duration = _duration(parameters, default=12 * _HOUR, most=36 * _HOUR)
        return {"Credentials": self._shown(self._issue(caller, caller.arn, caller.user_id, duration))}

    async def get_federation_token(self, caller: Credential, parameters: Parameters) -> Result:
        """Temporary credentials of a federated user."""
        name = parameters.get("Name", "")
        if caller.session:
            raise AwsError(403, "AccessDenied", "Cannot call GetFederationToken with session credentials")
        if not re.fullmatch(r"[\w+=,.@-]{2,32}", name):
            raise AwsError(400, "ValidationError", f"Value '{name}' at 'name' failed to satisfy constraint")
        duration = _duration(parameters, default=12 * _HOUR, most=36 * _HOUR)
        arn, user_id = f"arn:aws:sts::{caller.account}:federated-user/{name}", f"{caller.account}:{name}"
        shown = self._shown(self._issue(caller, arn, user_id, duration))
        return {
            "Credentials": shown,
            "FederatedUser": {"FederatedUserId": user_id, "Arn": arn},
            "PackedPolicySize": 1,
        }

    async def get_web_identity_token(self, caller: Credential, parameters: Parameters) -> Result:
        """Outbound federation: a JWT about the caller."""
        role = await self._store.role(caller.role_arn) if caller.role_arn else None
        tags = role["tags"] if role else {}
        duration = _duration(parameters, default=300, least=60, most=_HOUR)
        token, expires = await self._outbound.token(caller, parameters, duration, tags, time.time())
        return {"WebIdentityToken": token, "Expiration": iso(expires)}

    # sessions

    async def _assumable(
        self, parameters: Parameters, *, chained: bool = False
    ) -> tuple[dict[str, Any] | None, int]:
        """Return the role (None: it does not exist) and the session's duration."""
        arn, name = parameters.get("RoleArn", ""), parameters.get("RoleSessionName", "")
        if _ROLE_ARN.fullmatch(arn) is None:
            raise AwsError(400, "ValidationError", f"{arn} is invalid")
        if _SESSION_NAME.fullmatch(name) is None:
            raise AwsError(
                400, "ValidationError", f"Value '{name}' at 'roleSessionName' failed to satisfy constraint"
            )
        role = await self._store.role(arn)
        most = int(role.get("MaxSessionDuration", _HOUR)) if role else _HOUR
        return role, _duration(parameters, default=_HOUR, most=min(most, _HOUR) if chained else most)

    async def _session(
        self, role: Mapping[str, Any], parameters: Parameters, duration: int, source: str | None = None
    ) -> Result:
        arn, name = role["Arn"], parameters["RoleSessionName"]
        account = arn.split(":")[4]
        wanted = {"RoleArn": arn, "RoleSessionName": name, "DurationSeconds": duration}
        made = texts(await self._store.call("sts", "AssumeRole", wanted, account))
        lifetime = duration if self.lifetime is None else self.lifetime
        user_id = f"{role['RoleId']}:{name}"
        credential = self._registry.add(
            Credential(
                made["AccessKeyId"], made["SecretAccessKey"], account, made["Arn"], user_id,
                token=made["SessionToken"], expires=time.time() + lifetime, role_arn=arn,
                source_identity=parameters.get("SourceIdentity", source), moto_key=made["AccessKeyId"],
                tags={tag["Key"]: tag["Value"] for tag in members(parameters, "Tags", ("Key", "Value"))},
            )
        )  # fmt: skip
        result = {
            "Credentials": self._shown(credential),
            "AssumedRoleUser": {"AssumedRoleId": user_id, "Arn": credential.arn},
            "PackedPolicySize": 1,
        }
        if credential.source_identity:
            result["SourceIdentity"] = credential.source_identity
        return result

    def _issue(self, caller: Credential, arn: str, user_id: str, duration: int) -> Credential:
        """Credentials of the front's own: moto hands out one constant example for these actions."""
        lifetime = duration if self.lifetime is None else self.lifetime
        return self._registry.add(
            Credential(
                new_key_id(caller.account), secrets.token_urlsafe(30), caller.account, arn, user_id,
                token=secrets.token_urlsafe(180), expires=time.time() + lifetime, moto_key=caller.moto_key,
            )
        )  # fmt: skip

    def _shown(self, credential: Credential) -> Result:
        return {
            "AccessKeyId": credential.access_key_id,
            "SecretAccessKey": credential.secret,
            "SessionToken": credential.token,
            "Expiration": iso(credential.expires or 0),
        }


def _optional(parameters: Parameters, name: str) -> list[str]:
    return [parameters[name]] if name in parameters else []


def _denied(arn: str, action: str, resource: str) -> AwsError:
    return AwsError(
        403, "AccessDenied", f"User: {arn} is not authorized to perform: {action} on resource: {resource}"
    )


def _duration(parameters: Parameters, *, default: int, most: int, least: int = 900) -> int:
    text = parameters.get("DurationSeconds", str(default))
    if not text.isdecimal() or not least <= int(text) <= most:
        raise AwsError(400, "ValidationError", f"DurationSeconds {text} is not between {least} and {most}")
    return int(text)
