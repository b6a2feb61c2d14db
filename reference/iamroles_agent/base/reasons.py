"""The closed list of refusal reasons (SPEC.md section 4) and their answers to the client (RFC 6750, 9449)."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a request was refused: for the audit line and HAProxy's log, never for the client."""

    TEXT_TOO_LONG = "text_too_long"
    ORIGIN_REFUSED = "origin_refused"
    HOST_AMBIGUOUS = "host_ambiguous"
    """Only the proxy uses it: the agent gets the host that the proxy chose."""
    NO_CREDENTIALS = "no_credentials"
    MULTIPLE_CREDENTIALS = "multiple_credentials"
    TOKEN_MALFORMED = "token_malformed"  # noqa: S105 - the name of a reason, not a secret
    TOKEN_TOO_LARGE = "token_too_large"  # noqa: S105
    ALGORITHM_NOT_ALLOWED = "algorithm_not_allowed"
    KEY_UNKNOWN = "key_unknown"
    SIGNATURE_INVALID = "signature_invalid"
    CREDENTIAL_REVOKED = "credential_revoked"
    TOKEN_EXPIRED = "token_expired"  # noqa: S105
    TOKEN_NOT_YET_VALID = "token_not_yet_valid"  # noqa: S105
    TOKEN_LIFETIME = "token_lifetime"  # noqa: S105
    ISSUER_UNTRUSTED = "issuer_untrusted"
    AUDIENCE_MISMATCH = "audience_mismatch"
    TYPE_NOT_ALLOWED = "type_not_allowed"
    CLAIM_INVALID = "claim_invalid"
    TOKEN_BOUND = "token_bound"  # noqa: S105
    TOKEN_UNBOUND = "token_unbound"  # noqa: S105
    BINDING_MISMATCH = "binding_mismatch"
    PROOF_INVALID = "proof_invalid"
    PROOF_REPLAYED = "proof_replayed"
    """Only the proxy uses it: it counts the uses of a proof."""
    NONCE_REQUIRED = "nonce_required"
    ROLE_MISSING = "role_missing"
    ROLE_MALFORMED = "role_malformed"
    MCP_INVALID = "mcp_invalid"
    ROLE_NOT_IN_TOKEN = "role_not_in_token"  # noqa: S105
    AMBIGUOUS_ROLE = "ambiguous_role"
    NO_GRANT = "no_grant"
    DENIED_BY_RULE = "denied_by_rule"
    PATH_AMBIGUOUS = "path_ambiguous"
    SCOPE_INSUFFICIENT = "scope_insufficient"
    STS_REJECTED = "sts_rejected"
    STS_UNAVAILABLE = "sts_unavailable"
    KEYS_UNAVAILABLE = "keys_unavailable"
    INTERNAL_ERROR = "internal_error"

    @property
    def status(self) -> int:
        """HTTP status of the proxy's answer: 400, 401, 403 or 503."""
        return _ANSWER[self][0]

    @property
    def error(self) -> str:
        """Code of RFC 6750 or RFC 9449, or "" for a challenge without a code or no challenge."""
        return _ANSWER[self][1]


_BAD_REQUEST = (400, "invalid_request")
_FORBIDDEN = (403, "")
"""No error code: it would invite clients to ask for more scopes, and no scope helps."""
_UNAVAILABLE = (503, "")
_ANSWER: dict[Reason, tuple[int, str]] = dict.fromkeys(Reason, (401, "invalid_token"))
_ANSWER |= {
    Reason.NO_CREDENTIALS: (401, ""),
    Reason.PROOF_INVALID: (401, "invalid_dpop_proof"),
    Reason.PROOF_REPLAYED: (401, "invalid_dpop_proof"),
    Reason.NONCE_REQUIRED: (401, "use_dpop_nonce"),
    Reason.TEXT_TOO_LONG: _BAD_REQUEST,
    Reason.HOST_AMBIGUOUS: _BAD_REQUEST,
    Reason.MULTIPLE_CREDENTIALS: _BAD_REQUEST,
    Reason.PATH_AMBIGUOUS: _BAD_REQUEST,
    Reason.MCP_INVALID: _BAD_REQUEST,
    Reason.ORIGIN_REFUSED: _FORBIDDEN,
    Reason.ROLE_MISSING: _FORBIDDEN,
    Reason.ROLE_NOT_IN_TOKEN: _FORBIDDEN,
    Reason.AMBIGUOUS_ROLE: _FORBIDDEN,
    Reason.NO_GRANT: _FORBIDDEN,
    Reason.DENIED_BY_RULE: _FORBIDDEN,
    Reason.SCOPE_INSUFFICIENT: (403, "insufficient_scope"),
    Reason.STS_UNAVAILABLE: _UNAVAILABLE,
    Reason.KEYS_UNAVAILABLE: _UNAVAILABLE,
    Reason.INTERNAL_ERROR: _UNAVAILABLE,
}


class Refusal(Exception):  # noqa: N818 - a verdict, not a fault
    """A credential or request is refused.

    `detail` explains the reason in the audit line; it never holds a token, signature or secret.
    """

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else str(reason))
        self.reason = reason
        self.detail = detail
