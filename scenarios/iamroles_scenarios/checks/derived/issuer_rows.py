"""The rows of `issuers`: a value of each key, another in its place, and what comes of tokens under both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived.sitting import ALLOWED, OPEN, REFUSED, Wanted, refusal

AWS = "https://sts.amazonaws.com/"
_ARN = "arn:aws:iam::111111111111:role/"
KIOSK = [f"{_ARN}kiosk"]
_BOTH = [f"{_ARN}kiosk", f"{_ARN}clerk"]
_ABROAD = "arn:aws:iam::222222222222:role/kiosk"
JWKS = "{idp}/corp/jwks"
_AUDIENCE = refusal("audience_mismatch")
_NOT_YET = refusal("token_not_yet_valid")
Asked = tuple[Mapping[str, Any], Wanted, Wanted]
"""Claims (times from now; `typ` and `alg` of the header, `role` of the question), and what comes of them with
the key and without it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One value of one key."""

    value: object
    instead: object
    """Its value in the other world; None: it is left out there."""
    asked: Sequence[Asked]
    more: Mapping[str, Any] | None = None
    """Other keys of the issuer, in both worlds; None as a value leaves one out."""


def _audience(value: object) -> Mapping[str, Any]:
    return {"aud": value}


_AWS_CLAIMS = {"sub": KIOSK[0], AWS: {"aws_account": "111111111111"}, "roles": KIOSK}
_COGNITO = {"token_use": "access", "client_id": "edge", "cognito:roles": KIOSK, "roles": None}
_AT = {"typ": "at+jwt", "client_id": "c"}
ISSUER: Mapping[str, Sequence[Row]] = {
    "name": [
        Row(
            "one{n}",
            "two{n}",
            [({}, {"allow": True, "issuer": "one{n}"}, {"allow": True, "issuer": "two{n}"})],
        )
    ],
    "issuer": [
        Row(
            "https://this{n}.example",
            "https://that{n}.example",
            [
                ({"iss": "https://this{n}.example"}, ALLOWED, refusal("issuer_untrusted")),
                ({"iss": "https://that{n}.example"}, refusal("issuer_untrusted"), ALLOWED),
            ],
        ),
    ],
    "jwks_uri": [
        Row("{idp}/partner/jwks", JWKS, [({}, REFUSED, ALLOWED), ({"signer": "partner"}, ALLOWED, REFUSED)]),
    ],
    "audiences": [
        Row(
            ["edge", "hall"],
            ["edge"],
            [
                ({}, ALLOWED, ALLOWED),
                (_audience("hall"), ALLOWED, _AUDIENCE),
                (_audience("hal"), _AUDIENCE, _AUDIENCE),
                (_audience(["x", "hall"]), ALLOWED, _AUDIENCE),
                (_audience(None), _AUDIENCE, _AUDIENCE),
            ],
        ),
    ],
    "client_ids": [
        Row(
            ["edge", "hall"],
            ["hall"],
            [
                ({"aud": None, "client_id": "edge"}, ALLOWED, _AUDIENCE),
                ({"aud": None, "client_id": "hall"}, ALLOWED, ALLOWED),
                ({"aud": None}, _AUDIENCE, _AUDIENCE),
                ({"client_id": "hall", "aud": "other"}, _AUDIENCE, _AUDIENCE),
            ],
            {"audiences": None},
        ),
        Row(
            ["hall"],
            None,
            [
                ({"aud": None, "client_id": "hall"}, ALLOWED, _AUDIENCE),
                ({"aud": "edge", "client_id": "x"}, ALLOWED, ALLOWED),
                ({"aud": "x", "client_id": "hall"}, _AUDIENCE, _AUDIENCE),
            ],
        ),
    ],
    "algorithms": [
        Row(
            ["ES256"],
            ["RS256"],
            [
                ({"alg": "ES256"}, ALLOWED, refusal("algorithm_not_allowed")),
                ({"alg": "RS256"}, refusal("algorithm_not_allowed"), ALLOWED),
            ],
        ),
    ],
    "types": [
        Row(
            ["at+jwt"],
            None,
            [
                ({"typ": "at+jwt"}, ALLOWED, ALLOWED),
                ({"typ": "JWT"}, refusal("type_not_allowed"), ALLOWED),
                ({"typ": None}, refusal("type_not_allowed"), ALLOWED),
                ({"typ": "application/AT+jwt"}, ALLOWED, ALLOWED),
                ({"typ": "secevent+jwt"}, refusal("type_not_allowed"), refusal("type_not_allowed")),
            ],
        ),
        Row(
            ["secevent+jwt"],
            ["JWT"],
            [
                ({"typ": "secevent+jwt"}, ALLOWED, refusal("type_not_allowed")),
                ({"typ": "JWT"}, refusal("type_not_allowed"), ALLOWED),
                ({"typ": None}, refusal("type_not_allowed"), ALLOWED),
                ({"typ": "at+jwt"}, refusal("type_not_allowed"), refusal("type_not_allowed")),
            ],
        ),
    ],
    "profile": [
        Row(
            "rfc9068",
            "generic",
            [
                (_AT, ALLOWED, ALLOWED),
                (_AT | {"client_id": None}, refusal("claim_invalid"), ALLOWED),
                (_AT | {"jti": None}, refusal("claim_invalid"), ALLOWED),
                (_AT | {"iat": None}, refusal("claim_invalid"), ALLOWED),
                (_AT | {"typ": "JWT"}, refusal("type_not_allowed"), ALLOWED),
                (_AT | {"sub": None}, refusal("claim_invalid"), REFUSED),
            ],
        ),
        Row(
            "cognito",
            None,
            [
                (_COGNITO, ALLOWED, REFUSED),
                (_COGNITO | {"token_use": "id"}, refusal("type_not_allowed"), REFUSED),
                (_COGNITO | {"token_use": None}, refusal("type_not_allowed"), REFUSED),
                (_COGNITO | {"client_id": "x"}, _AUDIENCE, _AUDIENCE),
                (_COGNITO | {"cognito:roles": None, "roles": KIOSK}, refusal("role_missing"), REFUSED),
            ],
            {"audiences": None, "client_ids": ["edge"]},
        ),
        Row(
            "aws",
            None,
            [
                (_AWS_CLAIMS, ALLOWED, ALLOWED),
                (_AWS_CLAIMS | {"sub": "alice"}, REFUSED, ALLOWED),
                (_AWS_CLAIMS | {AWS: None}, refusal("claim_invalid"), ALLOWED),
                (_AWS_CLAIMS | {AWS: {"aws_account": "222222222222"}}, refusal("claim_invalid"), ALLOWED),
                (_AWS_CLAIMS | {"sub": _ABROAD, "roles": KIOSK}, refusal("claim_invalid"), ALLOWED),
                (_AWS_CLAIMS | {"roles": []}, ALLOWED, refusal("role_missing")),
            ],
            {"accounts": ["111111111111"]},
        ),
    ],
    "roles_claim": [
        Row(
            "groups",
            None,
            [
                ({"groups": KIOSK, "roles": None}, ALLOWED, refusal("role_missing")),
                ({"roles": KIOSK}, refusal("role_missing"), ALLOWED),
            ],
        ),
        Row(
            ["realm", "roles"],
            "realm.roles",
            [
                ({"realm": {"roles": KIOSK}, "roles": None}, ALLOWED, refusal("role_missing")),
                ({"realm.roles": KIOSK, "roles": None}, refusal("role_missing"), ALLOWED),
            ],
        ),
    ],
    "preferred_role_claim": [
        Row(
            "wish",
            None,
            [
                ({"roles": _BOTH, "wish": KIOSK[0]}, ALLOWED, refusal("ambiguous_role")),
                ({"roles": _BOTH, "wish": f"{_ARN}clerk"}, refusal("no_grant"), refusal("ambiguous_role")),
                (
                    {"roles": _BOTH, "wish": f"{_ARN}guard"},
                    refusal("ambiguous_role"),
                    refusal("ambiguous_role"),
                ),
                ({"roles": _BOTH, "wish": f"{_ARN}clerk", "role": "kiosk"}, ALLOWED, ALLOWED),
                ({"roles": _BOTH}, refusal("ambiguous_role"), refusal("ambiguous_role")),
            ],
        ),
    ],
    "scope_claim": [
        Row(
            "scp",
            None,
            [
                ({"scp": "x"}, refusal("scope_insufficient"), ALLOWED),
                ({"scp": "x kiosk"}, ALLOWED, ALLOWED),
                ({"scp": ["kiosk"]}, ALLOWED, ALLOWED),
                ({}, refusal("scope_insufficient"), ALLOWED),
                ({"scope": "kiosk"}, refusal("scope_insufficient"), ALLOWED),
            ],
        ),
    ],
    "scope_required": [
        Row(
            False,
            None,
            [
                ({}, ALLOWED, refusal("scope_insufficient")),
                ({"scp": ""}, refusal("scope_insufficient"), refusal("scope_insufficient")),
                ({"scp": "kiosk"}, ALLOWED, ALLOWED),
            ],
            {"scope_claim": "scp"},
        ),
    ],
    "session_claim": [
        Row(
            "sid",
            None,
            [({"sid": "s", "jti": "j"}, {"allow": True, "session": "s"}, {"allow": True, "session": "j"})],
        ),
        Row(
            ["act", "sid"],
            "sid",
            [
                (
                    {"act": {"sid": "a"}, "sid": "s"},
                    {"allow": True, "session": "a"},
                    {"allow": True, "session": "s"},
                )
            ],
        ),
    ],
    "principal_claim": [
        Row(
            "email",
            None,
            [
                (
                    {"email": "a@b", "sub": "s"},
                    {"allow": True, "principal": "a@b"},
                    {"allow": True, "principal": "s"},
                ),
                ({"sub": "s"}, refusal("claim_invalid"), {"allow": True, "principal": "s"}),
            ],
        ),
        Row(
            ["act", "who"],
            "sub",
            [
                (
                    {"act": {"who": "w"}},
                    {"allow": True, "principal": "w"},
                    {"allow": True, "principal": "alice"},
                )
            ],
        ),
    ],
    "accounts": [
        Row(
            ["222222222222"],
            ["111111111111"],
            [
                ({}, REFUSED, ALLOWED),
                ({"roles": [_ABROAD]}, refusal("no_grant"), REFUSED),
                ({"roles": [*KIOSK, _ABROAD], "role": "kiosk"}, REFUSED, OPEN),
            ],
        ),
        Row(
            ["222222222222"],
            None,
            [({}, REFUSED, ALLOWED), ({"roles": [_ABROAD]}, refusal("no_grant"), refusal("no_grant"))],
        ),
    ],
    "max_lifetime": [
        Row(
            "10m",
            None,
            [
                ({"iat": -60, "exp": 540}, ALLOWED, ALLOWED),
                ({"iat": -60, "exp": 541}, refusal("token_lifetime"), ALLOWED),
                ({"iat": -60, "exp": 3540}, refusal("token_lifetime"), ALLOWED),
                ({"iat": -60, "exp": 3541}, refusal("token_lifetime"), refusal("token_lifetime")),
                ({"iat": None, "exp": 900}, refusal("token_lifetime"), ALLOWED),
                ({"iat": None, "exp": 500}, ALLOWED, ALLOWED),
            ],
        ),
        Row(
            "2h",
            None,
            [
                ({"iat": -60, "exp": 7140}, ALLOWED, refusal("token_lifetime")),
                ({"iat": -60, "exp": 7141}, REFUSED, REFUSED),
            ],
        ),
    ],
    "leeway": [
        Row(
            "30s",
            None,
            [
                ({"iat": -90, "exp": -10}, ALLOWED, refusal("token_expired")),
                ({"iat": -90, "exp": -40}, refusal("token_expired"), refusal("token_expired")),
                ({"nbf": 20}, ALLOWED, _NOT_YET),
                ({"nbf": 200}, _NOT_YET, _NOT_YET),
                ({"iat": 20}, ALLOWED, _NOT_YET),
                ({"iat": 200}, _NOT_YET, _NOT_YET),
            ],
        ),
        Row(
            "60s",
            "0s",
            [({"iat": -90, "exp": -25}, ALLOWED, refusal("token_expired")), ({"nbf": 45}, ALLOWED, _NOT_YET)],
        ),
    ],
}
STS: Mapping[str, Sequence[Row]] = {
    "name": [
        Row(
            "sts-one",
            "sts-two",
            [({}, {"allow": True, "issuer": "sts-one"}, {"allow": True, "issuer": "sts-two"})],
        )
    ],
    "endpoint": [Row("{sts}", "http://127.0.0.1:9/", [({}, ALLOWED, refusal("sts_unavailable"))])],
    "hosts": [
        Row(
            ["{host}", "b{host}"],
            ["b{host}"],
            [
                ({}, ALLOWED, refusal("issuer_untrusted", "token_malformed")),
                ({"host": "b{host}"}, ALLOWED, ALLOWED),
            ],
        ),
    ],
    "binding_header": [
        Row(
            "x-iam-gate",
            None,
            [
                ({"binding_header": "x-iam-gate"}, ALLOWED, REFUSED),
                ({"binding_header": "x-iam-edge"}, REFUSED, ALLOWED),
            ],
        ),
    ],
    "binding_value": [
        Row(
            "edge-b",
            "edge-a",
            [
                ({"binding_value": "edge-b"}, ALLOWED, REFUSED),
                ({"binding_value": "edge-a"}, REFUSED, ALLOWED),
            ],
        ),
    ],
    "accounts": [
        Row(["222222222222"], ["111111111111"], [({}, REFUSED, ALLOWED)]),
        Row(["222222222222"], None, [({}, REFUSED, ALLOWED)]),
    ],
}
LIMITS: Mapping[str, Sequence[Row]] = {
    "max_lifetime": [
        Row(
            "10m",
            None,
            [
                ({"iat": -60, "exp": 540}, ALLOWED, ALLOWED),
                ({"iat": -60, "exp": 541}, refusal("token_lifetime"), ALLOWED),
            ],
        ),
        Row(
            "2h",
            None,
            [({"iat": -60, "exp": 3540}, ALLOWED, ALLOWED), ({"iat": -60, "exp": 3541}, REFUSED, REFUSED)],
        ),
        Row(
            "20m",
            "2h",
            [({"iat": -60, "exp": 1140}, ALLOWED, ALLOWED), ({"iat": -60, "exp": 1141}, REFUSED, ALLOWED)],
            {"max_lifetime": "1h"},
        ),
        Row(
            "20m",
            "2h",
            [({"iat": -60, "exp": 840}, ALLOWED, ALLOWED), ({"iat": -60, "exp": 841}, REFUSED, REFUSED)],
            {"max_lifetime": "15m"},
        ),
    ],
    "max_token_bytes": [
        Row(
            1024,
            None,
            [({"size": 1000}, ALLOWED, ALLOWED), ({"size": 1100}, refusal("token_too_large"), ALLOWED)],
        ),
        Row(16384, None, [({"size": 12000}, ALLOWED, refusal("token_too_large"))]),
    ],
}
"""Bounds that hold for all issuers; played alone, one after the other."""
TABLES = {"issuers": ISSUER, "sts": STS, "limits": LIMITS}
