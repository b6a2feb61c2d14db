"""Credentials that the cloud issued, and the check of every request against them.

This is where moto fails open and the front does not: an unknown key, a wrong secret, a wrong or missing
session token, an old or future date, an expired credential each end here, with AWS's error code.
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from iamroles_scenarios.mock import sigv4

CLOCK_SKEW = 15 * 60
"""Seconds that a signature's date may lie in the past or in the future, in a header or pre-signed."""


class AwsError(Exception):
    """An error answer of AWS's query protocol."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.status = status
        self.code = code
        self.message = message


@dataclass
class Credential:
    """An access key: a user's long-term one, or a session's."""

    access_key_id: str
    secret: str
    account: str
    arn: str
    """ARN of the principal, as in the answer of GetCallerIdentity."""
    user_id: str
    token: str | None = None
    expires: float | None = None
    """Epoch seconds; None: a long-term key."""
    active: bool = True
    role_arn: str | None = None
    """The role of an assumed-role session."""
    source_identity: str | None = None
    moto_key: str = ""
    """The access key that moto knows this principal by."""
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def session(self) -> bool:
        return self.token is not None


class Registry:
    """All credentials, by access key id."""

    def __init__(self) -> None:
        self._by_key: dict[str, Credential] = {}

    def __getitem__(self, access_key_id: str) -> Credential:
        return self._by_key[access_key_id]

    def get(self, access_key_id: str) -> Credential | None:
        return self._by_key.get(access_key_id)

    def add(self, credential: Credential) -> Credential:
        self._by_key[credential.access_key_id] = credential
        return credential

    def drop(self, access_key_ids: Iterable[str]) -> None:
        for access_key_id in list(access_key_ids):
            self._by_key.pop(access_key_id, None)

    def of_principal(self, *, role_arn: str | None = None, arn: str | None = None) -> list[str]:
        """Keys of a role's sessions, or of a user and of the sessions it got for itself."""
        return [
            key
            for key, each in self._by_key.items()
            if (role_arn is not None and each.role_arn == role_arn) or (arn is not None and each.arn == arn)
        ]

    def authenticate(self, received: sigv4.Received, service: str) -> Credential:
        """Return the signer of this request.

        Raises:
            AwsError: nobody that we can believe.
        """
        now = time.time()
        try:
            signed = sigv4.read(received)
        except sigv4.Unsigned:
            raise AwsError(
                403, "MissingAuthenticationToken", "Request is missing Authentication Token"
            ) from None
        except sigv4.Incomplete as fault:
            raise AwsError(400, "IncompleteSignature", str(fault)) from None
        credential = self._by_key.get(signed.access_key_id)
        if credential is None or not credential.active or not _same(credential.token, signed.security_token):
            invalid = "The security token included in the request is invalid."
            raise AwsError(403, "InvalidClientTokenId", invalid)
        _check_scope(signed, service)
        _check_headers(received, signed)
        if not hmac.compare_digest(sigv4.expected(received, signed, credential.secret), signed.signature):
            mismatch = "The request signature we calculated does not match the signature you provided."
            raise AwsError(403, "SignatureDoesNotMatch", mismatch)
        _check_date(signed, now)
        if credential.expires is not None and now >= credential.expires:
            raise AwsError(403, "ExpiredToken", "The security token included in the request is expired")
        return credential


def _same(held: str | None, given: str | None) -> bool:
    return hmac.compare_digest((held or "").encode(), (given or "").encode())


def _check_scope(signed: sigv4.Signed, service: str) -> None:
    if signed.service != service:
        wrong = f"Credential should be scoped to correct service: '{service}'."
        raise AwsError(403, "SignatureDoesNotMatch", wrong)
    if signed.scope_date != signed.date[:8]:
        raise AwsError(403, "SignatureDoesNotMatch", "Date in Credential scope does not match X-Amz-Date")


def _check_headers(received: sigv4.Received, signed: sigv4.Signed) -> None:
    """Host and every x-amz header must be under the signature; AWS lists them lower-case and sorted."""
    present = {name.lower() for name, _ in received.headers if re.match("(?i)x-amz-", name)}
    missing = ({"host"} | present) - set(signed.signed_headers)
    if missing:
        raise AwsError(403, "SignatureDoesNotMatch", f"{', '.join(sorted(missing))} must be a signed header")
    if list(signed.signed_headers) != sorted({name.lower() for name in signed.signed_headers}):
        raise AwsError(400, "IncompleteSignature", "SignedHeaders is not sorted, lower-case and unique")


def _check_date(signed: sigv4.Signed, now: float) -> None:
    try:
        age = now - signed.time
    except ValueError:
        raise AwsError(400, "IncompleteSignature", "X-Amz-Date is not a date") from None
    if age > CLOCK_SKEW:
        raise AwsError(403, "SignatureDoesNotMatch", f"Signature expired: {signed.date} is {age:.0f} s old")
    if age < -CLOCK_SKEW:
        raise AwsError(403, "SignatureDoesNotMatch", f"Signature not yet current: {signed.date}")
