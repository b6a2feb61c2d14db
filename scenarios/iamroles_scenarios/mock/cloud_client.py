"""The suite's side of the mock cloud: boto3 unchanged, control, and pre-signed credentials."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import boto3
from botocore import UNSIGNED
from botocore.config import Config

from iamroles_scenarios.base.sent import note_token
from iamroles_scenarios.mock import presign
from iamroles_scenarios.mock.control_client import Control, IssuerHandle
from iamroles_scenarios.mock.presign import SessionKeys

if TYPE_CHECKING:
    from mypy_boto3_iam import IAMClient
    from mypy_boto3_sts import STSClient

_CONFIG = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=30, proxies={})


class CloudClient:
    """Control of a mock cloud process.

    Args:
        control_url: as the suite reaches it; also boto3's `endpoint_url`.
    """

    def __init__(self, control_url: str) -> None:
        self.url = control_url.rstrip("/")
        self._control = Control(control_url)
        self._lock = threading.RLock()  # an account makes a client while it is made
        self._serial = itertools.count()
        self._accounts: dict[str, Account] = {}
        self._sessions = boto3.session.Session()
        self._client = lru_cache(maxsize=32)(self._new_client)  # to make one takes longer than a call

    def account(self, account: str = "111111111111") -> Account:
        """An account, with its administrator; made when first asked for."""
        with self._lock:
            if account not in self._accounts:
                self._accounts[account] = Account(self, self._control, account)
            return self._accounts[account]

    def sts(self, keys: SessionKeys | None, *, region: str = "us-east-1") -> STSClient:
        """boto3's STS client; None: a client without keys, for web identities."""
        return self._client("sts", keys, region)  # type: ignore[no-any-return]

    def iam(self, keys: SessionKeys, *, region: str = "us-east-1") -> IAMClient:
        return self._client("iam", keys, region)  # type: ignore[no-any-return]

    def _new_client(self, service: str, keys: SessionKeys | None, region: str) -> Any:  # noqa: ANN401 - boto3's
        given = keys or SessionKeys("none", "none")
        config = _CONFIG if keys else _CONFIG.merge(Config(signature_version=UNSIGNED))
        with self._lock:  # a boto3 session is not thread-safe while it makes clients; clients are
            return self._sessions.client(
                service,  # type: ignore[call-overload]
                endpoint_url=self.url,
                region_name=region,
                aws_access_key_id=given.access_key_id,
                aws_secret_access_key=given.secret_access_key,
                aws_session_token=given.session_token,
                config=config,
            )

    def assume(
        self,
        role_arn: str,
        session_name: str = "alice",
        *,
        by: SessionKeys | None = None,
        duration: int | None = None,
        **parameters: Any,  # noqa: ANN401 - boto3's
    ) -> SessionKeys:
        """AssumeRole through boto3, by default by the administrator of the role's own account."""
        caller = by or self.account(role_arn.split(":")[4]).administrator
        if duration is not None:
            parameters["DurationSeconds"] = duration
        answer = self.sts(caller).assume_role(RoleArn=role_arn, RoleSessionName=session_name, **parameters)
        return _keys(answer["Credentials"], answer["AssumedRoleUser"]["Arn"])

    def web_identity_token(
        self,
        keys: SessionKeys,
        audience: str | Sequence[str],
        *,
        algorithm: str = "RS256",
        duration: int = 300,
        **parameters: Any,  # noqa: ANN401 - boto3's
    ) -> str:
        """GetWebIdentityToken through boto3: an outbound federation JWT."""
        answer = self.sts(keys).get_web_identity_token(
            Audience=[audience] if isinstance(audience, str) else list(audience),
            SigningAlgorithm=algorithm,
            DurationSeconds=duration,
            **parameters,
        )
        return note_token(answer["WebIdentityToken"])

    def presign_caller_identity(
        self,
        keys: SessionKeys,
        binding_value: str,
        recipe: Mapping[str, Any] | None = None,
        *,
        binding_header: str = presign.BINDING_HEADER,
        host: str = presign.HOST,
        now: float | None = None,
    ) -> str:
        """An `iam-sts-v1` credential, sound or by recipe (see `mock.presign`).

        Each call makes another one, by `X-Amz-Expires`, which STS does not enforce: two of the same second
        would else be the same bytes, and an agent could answer the second from its cache.
        """
        moment = time.time() if now is None else now
        distinct = {"expires": 60 + next(self._serial) % 840, **(recipe or {})}
        return presign.credential(
            distinct, keys, moment, binding_value=binding_value, binding_header=binding_header, host=host
        )

    def fault(self, action: str, kind: str, **parameters: object) -> None:
        """Put a fault on an AWS action, or `*`: those of `mock.faults`, `throttle`, `forge`."""
        self._control.call("POST", "fault", {"action": action, "kind": kind, **parameters})

    def clear(self, action: str = "*") -> None:
        """End the fault on an action; on all, by default."""
        self._control.call("POST", "fault", {"action": action, "clear": True})

    def lifetime(self, seconds: float | None) -> None:
        """Let new sessions live this many seconds whatever they ask for; None: as they ask."""
        self._control.call("POST", "lifetime", {"seconds": seconds})

    def expire(self, keys: SessionKeys) -> None:
        self._control.call("POST", "expire", {"access_key_id": keys.access_key_id})

    def counters(self) -> dict[str, int]:
        """Calls by action; `<action>-done` and `<action>-refused` when answered."""
        return self._control.call("GET", "counters")

    def wait_for(self, counter: str, at_least: int, deadline: float = 10.0) -> dict[str, int]:
        """Return all counts once one has reached its mark.

        Raises:
            WaitTimeoutError: not within `deadline` seconds.
        """
        query = {"counter": counter, "at-least": at_least, "timeout": deadline}
        return self._control.call("GET", "wait", query=query, seconds=deadline + 10)

    def last(self, action: str = "GetCallerIdentity") -> dict[str, Any]:
        """The last request of an action as it arrived: method, path, query, headers; secrets are blanked."""
        return self._control.call("GET", "last", query={"action": action})

    def healthy(self) -> bool:
        return self._control.healthy()

    def close(self) -> None:
        self._control.close()


class Account:
    """One AWS account of the mock."""

    def __init__(self, cloud: CloudClient, control: Control, account: str) -> None:
        report = control.call("PUT", f"accounts/{account}")
        self._cloud = cloud
        self.id = account
        self.administrator = SessionKeys(
            report["access_key_id"], report["secret_access_key"], arn=report["arn"]
        )
        self.issuer = IssuerHandle(control, control.call("GET", f"issuers/{report['issuer']}"))
        """Its outbound federation issuer: rotate, poison, fault, count, mint as with any."""
        self.iam = cloud.iam(self.administrator)
        self._roles: dict[str, str] = {}

    def role(
        self,
        name: str,
        *,
        path: str = "/",
        trust: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> str:
        """Create a role and return its ARN.

        Args:
            name: of the role.
            path: IAM path, lost in the sessions' ARNs (PRINCIPAL-ARN-004).
            trust: policy document; default: this account may assume it.
            tags: principal tags of its outbound tokens.
        """
        policy = trust or trusting(f"arn:aws:iam::{self.id}:root")
        answer = self.iam.create_role(
            RoleName=name,
            Path=path,
            AssumeRolePolicyDocument=json.dumps(policy),
            Tags=[{"Key": key, "Value": value} for key, value in (tags or {}).items()],
        )
        return answer["Role"]["Arn"]

    def ensure_role(self, name: str) -> str:
        """The ARN of a role, which is created unless somebody did so before."""
        if name not in self._roles:
            try:
                self._roles[name] = self.role(name)
            except self.iam.exceptions.EntityAlreadyExistsException:
                self._roles[name] = self.iam.get_role(RoleName=name)["Role"]["Arn"]
        return self._roles[name]

    def provider(self, url: str, client_ids: Sequence[str]) -> str:
        """Create an OIDC provider and return its ARN."""
        answer = self.iam.create_open_id_connect_provider(
            Url=url, ClientIDList=list(client_ids), ThumbprintList=["0" * 40]
        )
        return answer["OpenIDConnectProviderArn"]


def trusting(principal: str, **condition: Mapping[str, Any]) -> dict[str, Any]:
    """A trust policy for an AWS principal, or for an OIDC provider if the ARN is one's."""
    federated = ":oidc-provider/" in principal
    statement: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": {"Federated" if federated else "AWS": principal},
        "Action": "sts:AssumeRoleWithWebIdentity" if federated else "sts:AssumeRole",
    }
    if condition:
        statement["Condition"] = condition
    return {"Version": "2012-10-17", "Statement": [statement]}


def _keys(credentials: Mapping[str, Any], arn: str) -> SessionKeys:
    return SessionKeys(
        credentials["AccessKeyId"],
        credentials["SecretAccessKey"],
        credentials["SessionToken"],
        credentials["Expiration"],
        arn,
    )
