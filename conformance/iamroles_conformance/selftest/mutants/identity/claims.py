"""Mutants of claims and principals: JWT-EXP to JWT-AT, PRINCIPAL, OUTBOUND."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iamroles_agent.identity import RoleArn
from iamroles_agent.reasons import Reason, Refusal
from iamroles_agent.tokens import claims
from iamroles_conformance.selftest.mutants.identity.header import _override
from iamroles_conformance.selftest.mutants.override import override
from iamroles_conformance.selftest.registry import mutant

_RULES = "claims.ClaimRules"


def _rules(edit: Callable[[Any], None]) -> None:
    """Change an issuer's compiled rules."""

    def make(sound: Any) -> Any:
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            sound(self, *args, **kwargs)
            edit(self)

        return init

    _override(_RULES, "__init__", make)


def _claims(edit: Callable[[dict[str, Any], float], dict[str, Any]]) -> None:
    """Change the claims before their times are judged."""

    def make(sound: Any) -> Any:
        return lambda self, payload, now: sound(self, edit(dict(payload), now), now)

    _override(_RULES, "_times", make)


def _coerced(claim: str) -> None:
    """Read a claim as a lenient library does."""

    def make(sound: Any) -> Any:
        def seconds(payload: Any, name: str) -> Any:
            try:
                return sound(payload, name)
            except Refusal:
                if name != claim:
                    raise
                try:
                    return int(float(payload[name]))
                except (TypeError, ValueError, OverflowError):
                    pass
                raise

        return seconds

    _override("claims", "_seconds", make)


# --- times ------------------------------------------------------------------------------------------------


@mutant("identity.exp-optional", kills=["JWT-EXP-001"], title="accepts tokens without exp")
def exp_optional() -> None:
    _claims(lambda payload, now: {"exp": int(now) + 60} | payload)


@mutant("identity.exp-text", kills=["JWT-EXP-002"], title="reads exp out of strings and fractions")
def exp_text() -> None:
    _coerced("exp")


@mutant("identity.any-lifetime", kills=["JWT-EXP-003"], title="accepts any lifetime")
def any_lifetime() -> None:
    def edit(rules: Any) -> None:
        rules._lifetime = float("inf")

    _rules(edit)


@mutant(
    "identity.lifetime-needs-iat", kills=["JWT-EXP-003"], title="bounds lifetimes only where iat is given"
)
def lifetime_needs_iat() -> None:
    def make(sound: Any) -> Any:
        def times(self: Any, payload: Any, now: float) -> Any:
            kept, self._lifetime = self._lifetime, self._lifetime if "iat" in payload else float("inf")
            try:
                return sound(self, payload, now)
            finally:
                self._lifetime = kept

        return times

    _override(_RULES, "_times", make)


@mutant("identity.own-leeway", kills=["JWT-EXP-004"], title="has a leeway of its own")
def own_leeway() -> None:
    def edit(rules: Any) -> None:
        rules._leeway = max(rules._leeway, 30.0)

    _rules(edit)


@mutant("identity.no-leeway", kills=["JWT-EXP-005"], title="ignores the configured leeway")
def no_leeway() -> None:
    def edit(rules: Any) -> None:
        rules._leeway = 0.0

    _rules(edit)


@mutant("identity.ignores-nbf", kills=["JWT-NBF-001"], title="ignores an nbf that is ahead")
def ignores_nbf() -> None:
    def edit(payload: dict[str, Any], now: float) -> dict[str, Any]:
        ahead = isinstance(payload.get("nbf"), int) and payload["nbf"] > now
        return payload | ({"nbf": int(now)} if ahead else {})

    _claims(edit)


@mutant("identity.nbf-text", kills=["JWT-NBF-002"], title="reads nbf out of strings and fractions")
def nbf_text() -> None:
    _coerced("nbf")


@mutant("identity.ignores-iat", kills=["JWT-IAT-001"], title="ignores an iat that is ahead")
def ignores_iat() -> None:
    def edit(payload: dict[str, Any], now: float) -> dict[str, Any]:
        ahead = isinstance(payload.get("iat"), int) and payload["iat"] > now
        return payload | ({"iat": int(now)} if ahead else {})

    _claims(edit)


@mutant("identity.iat-text", kills=["JWT-IAT-002"], title="reads iat out of strings and fractions")
def iat_text() -> None:
    _coerced("iat")


# --- issuer, audience, kind of token ----------------------------------------------------------------------


@mutant("identity.iss-prefix", kills=["JWT-ISS-001"], title="compares the beginning of iss")
def iss_prefix() -> None:
    def make(sound: Any) -> Any:
        def issuer_of(self: Any, jws: Any) -> Any:
            iss = jws.payload.get("iss")
            near = [
                found for url, found in self._issuers.items() if isinstance(iss, str) and iss.startswith(url)
            ]
            return near[0] if near else sound(self, jws)

        return issuer_of

    _override("authenticator.Authenticator", "_issuer_of", make)


@mutant("identity.aud-substring", kills=["JWT-AUD-001"], title="looks for the audience within aud")
def aud_substring() -> None:
    def make(sound: Any) -> Any:
        def audience(self: Any, payload: Any) -> None:
            if not any(one in str(payload.get("aud")) for one in self._audiences):
                sound(self, payload)

        return audience

    _override(_RULES, "_plain_audience", make)


@mutant("identity.aud-first", kills=["JWT-AUD-002"], title="looks at the first audience only")
def aud_first() -> None:
    def make(sound: Any) -> Any:
        def audience(self: Any, payload: Any) -> None:
            aud = payload.get("aud")
            sound(self, payload | ({"aud": aud[0]} if isinstance(aud, list) and aud else {}))

        return audience

    _override(_RULES, "_plain_audience", make)


@mutant("identity.any-client", kills=["JWT-COGNITO-001"], title="ignores client_id")
def any_client() -> None:
    _override(_RULES, "_check_client", lambda sound: lambda self, payload: None)


@mutant("identity.id-token", kills=["JWT-COGNITO-002"], title="takes an ID token for an access token")
def id_token() -> None:
    def make(sound: Any) -> Any:
        def audience(self: Any, payload: Any) -> None:
            client = payload.get("client_id", payload.get("aud"))
            sound(self, payload | {"token_use": "access", "client_id": client})

        return audience

    _override(_RULES, "_cognito_audience", make)


@mutant("identity.half-access-token", kills=["JWT-AT-001"], title="asks nothing more of RFC 9068's tokens")
def half_access_token() -> None:
    _override("claims", "_check_rfc9068", lambda sound: lambda payload, iat: None)
    _override("claims", "_label", lambda sound: lambda value, name: sound(value or "nobody", name))


# --- principals -------------------------------------------------------------------------------------------


def _role(read: Callable[[Any, str], Any]) -> None:
    """Read a role ARN otherwise: `read(sound, text)`."""
    _override("claims", "role_arn", lambda sound: lambda text: read(sound, text))


@mutant("identity.role-path-kept", kills=["PRINCIPAL-ARN-001"], title="refuses role ARNs with a path")
def role_path_kept() -> None:
    def read(sound: Any, text: str) -> Any:
        if ":role/" in text and text.count("/") > 1:
            raise Refusal(Reason.ROLE_MALFORMED, "a path")
        return sound(text)

    _role(read)


@mutant("identity.skips-malformed", kills=["PRINCIPAL-ARN-002"], title="passes over malformed role ARNs")
def skips_malformed() -> None:
    def make(sound: Any) -> Any:
        def judge(self: Any, entries: Any) -> Any:
            good = []
            for entry in entries:
                try:
                    good.append(str(claims._role(entry)))
                except Refusal:
                    continue
            return sound(self, good or entries)

        return judge

    _override(_RULES, "_judge_roles", make)


@mutant("identity.arn-part", kills=["PRINCIPAL-ARN-002"], title="finds a role's ARN within a longer text")
def arn_part() -> None:
    def read(sound: Any, text: str) -> Any:
        found = re.search(r"arn:aws:(?:iam::\d{12}:role/[\w/]+|sts::\d{12}:assumed-role/\w+/\w+)", text)
        return sound(found[0]) if found else sound(text)

    _role(read)


@mutant("identity.role-case", kills=["PRINCIPAL-ARN-003"], title="compares role names without regard to case")
def role_case() -> None:
    def read(sound: Any, text: str) -> Any:
        head, _, name = text.rpartition(":role/")
        return sound(f"{head}:role/{name.lower()}" if head else text)

    _role(read)


@mutant(
    "identity.mapping-with-path", kills=["PRINCIPAL-ARN-004"], title="accepts a mapping that never matches"
)
def mapping_with_path() -> None:
    def make(sound: Any) -> Any:
        def parse(text: str) -> RoleArn:
            arn: RoleArn = sound(text)
            return replace(arn, name=text.partition(":role/")[2]) if ":role/" in text else arn

        return staticmethod(parse)

    override(RoleArn, "parse", make)


@mutant("identity.one-account", kills=["PRINCIPAL-ACCOUNT-001"], title="compares roles by name alone")
def one_account() -> None:
    _role(
        lambda sound, text: sound(
            re.sub(r"^arn:aws(-cn)?:(\w+)::\d{12}:", r"arn:aws:\2::111111111111:", text)
        )
    )


@mutant(
    "identity.session-is-role", kills=["PRINCIPAL-SESSION-001"], title="takes the session name for the role"
)
def session_is_role() -> None:
    def read(sound: Any, text: str) -> Any:
        return sound(re.sub(r"assumed-role/[^/]+/([^/]+)$", r"assumed-role/\1/x1", text))

    _role(read)


@mutant("identity.logs-tokens", kills=["PRINCIPAL-SECRET-001"], title="logs the credentials that it refuses")
def logs_tokens() -> None:
    def make(sound: Any) -> Any:
        async def authenticate(self: Any, authorization: str) -> Any:
            try:
                return await sound(self, authorization)
            except Refusal:
                sys.stderr.write(f"refused: {authorization}\n")
                sys.stderr.flush()
                raise

        return authenticate

    _override("authenticator.Authenticator", "authenticate", make)


# --- outbound federation ----------------------------------------------------------------------------------


def _aws(edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the claims, and those in AWS's namespace, before the principal is read."""

    def make(sound: Any) -> Any:
        def aws(self: Any, payload: Any, now: float) -> Any:
            said = payload.get("https://sts.amazonaws.com/")
            changed = dict(payload)
            if isinstance(said, dict):
                changed["https://sts.amazonaws.com/"] = said = dict(said)
            edit(changed, said if isinstance(said, dict) else {})
            return sound(self, changed, now)

        return aws

    _override(_RULES, "_aws", make)


@mutant("identity.key-needs-alg", kills=["OUTBOUND-ALLOW-001"], title="drops keys that name no alg")
def key_needs_alg() -> None:
    _override("keys", "_problem", lambda sound: lambda jwk: sound(jwk) or ("" if "alg" in jwk else "no alg"))


@mutant("identity.aws-account", kills=["OUTBOUND-ACCOUNT-001"], title="ignores aws_account")
def aws_account() -> None:
    _aws(lambda payload, said: said.update(aws_account="111111111111"))


@mutant("identity.aws-arn-account", kills=["OUTBOUND-ACCOUNT-001"], title="ignores the ARN's account")
def aws_arn_account() -> None:
    _aws(
        lambda payload, said: payload.update(
            sub=str(payload.get("sub")).replace("222222222222", "111111111111")
        )
    )


@mutant(
    "identity.origin-sub", kills=["OUTBOUND-ORIGIN-001"], title="takes the role from sub whatever the mode"
)
def origin_sub() -> None:
    def edit(payload: dict[str, Any], said: dict[str, Any]) -> None:
        payload.pop("subject_mode", None)
        said.pop("subject_mode", None)

    _aws(edit)


@mutant("identity.request-tags", kills=["OUTBOUND-TAGS-001"], title="takes roles from request tags")
def request_tags() -> None:
    def make(sound: Any) -> Any:
        def aws(self: Any, payload: Any, now: float) -> Any:
            roles, end = sound(self, payload, now)
            tags = payload["https://sts.amazonaws.com/"].get("request_tags", {})
            return (*roles, *(RoleArn.parse(text) for name, text in tags.items() if name == "role")), end

        return aws

    _override(_RULES, "_aws", make)


@mutant(
    "identity.outer-session", kills=["OUTBOUND-SESSION-001"], title="ignores the end of the outer session"
)
def outer_session() -> None:
    _aws(lambda payload, said: said.pop("original_session_exp", None))


@mutant("identity.irsa", kills=["OUTBOUND-IRSA-001"], title="takes any token of AWS for one of STS")
def irsa() -> None:
    def edit(payload: dict[str, Any], said: dict[str, Any]) -> None:
        if not said:
            payload["https://sts.amazonaws.com/"] = {"aws_account": "111111111111"}

    _aws(edit)
