"""Callers that sign for STS, soundly and not.

Every check signs for a host of its own, `<flow>.sts.example`, in the shared world `identity-sts`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from iamroles_scenarios.base import recording
from iamroles_scenarios.base.errors import Inapplicable, RecipeError
from iamroles_scenarios.base.polling import rest
from iamroles_scenarios.checks.identity.fetch import listening, must_be_silent
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine.bench import ALLOWED, EDGE, STS_ACTION, Bench, bench, refused
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import b64url_decode

if TYPE_CHECKING:
    from iamroles_scenarios.mock.clients import SessionKeys

WORLD = "identity-sts"
_LONGEST = 3063
"""Bytes of the URL of the longest credential: `iam-sts-v1.` and 4084 letters."""
OTHER_ACCOUNT = "222222222222"
REJECTED = refused("sts_rejected")
_OVER = refused("sts_rejected", "token_expired")
_REFUSED = 20
"""Credentials that STS confirms and the agent refuses, each shown twice: more than it may ask about."""
_BRIEF, _LEFT, _WAIT = 600, 2.0, 2.5
"""Seconds: `max_lifetime` of the role `brief`; times the scale, what is left of it, and what STS takes."""
_EXPIRED = '{"Error": {"Code": "ExpiredToken", "Message": "x", "Type": "Sender"}, "RequestId": "x"}'
_EXPIRED_XML = (
    '<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>'
    "<Code>ExpiredToken</Code><Message>x</Message></Error><RequestId>x</RequestId></ErrorResponse>"
)
"""How STS refuses, in both of its forms; a `RequestExpired`, for one, comes with the status 400."""
_RECOVERY = 12.0
"""Seconds, times the scale, until the agent asks an STS again that answers again."""
_RECHECK, _ROUNDED, _POLL = 1.0, 0.1, 0.05
"""Seconds, of the world and of no host: an agent that is late has believed no longer for it."""


@check("identity.caller.host", "STS-HOST-001", features={"sts"})
def host(target: Target) -> None:
    """Look-alike hosts, user info, ports and other spellings are refused without a call.

    The signature is sound for the true host. Only the URL's authority differs, or both do.
    """
    with bench(target, WORLD, flow="hosts") as here, listening(target) as listener:
        keys = here.session()
        here.expect("the host itself", here.credential(keys), ALLOWED)
        calls = here.sts_calls()
        true = here.sts_host
        for false in (
            f"{true}.evil.example", f"evil-{true}", f"{true}:443", f"{true}:80", f"{true}.", f"user@{true}",
            f"user:pass@{true}", f"{true}@{listener.host}", f"{listener.host}", f"{true}%2f@{listener.host}",
            f"{true}%00", f"{true}\\@{listener.host}", true.upper(), f"{true}#@{listener.host}",
            f"{true}?@{listener.host}", f"@{true}", f"{true}:", "169.254.169.254", "sts.amazonaws.com", "",
            "localhost", true.replace(".", "\u3002"), true.replace("s", "\u017f"),
        ):  # fmt: skip
            answer = refused("issuer_untrusted", "token_malformed", "sts_rejected")
            here.expect(f"host {false!r}", here.credential(keys, url_host=false), answer)
            here.expect(f"host {false!r}, signed", here.credential(keys, host=false), answer)
        must_be_silent(here, listener, None, "a host")
        if here.sts_calls() != calls:
            raise here.failed("a URL of a false host made the agent call STS", expected="no call")


@check("identity.caller.rebuilt", "STS-REBUILD-001", features={"sts"})
def rebuilt(target: Target) -> None:
    """The request that reaches STS is the agent's own, with nothing of the caller's choosing.

    The check reads the last request that reached the cloud under this flow's host.
    """
    with bench(target, WORLD, flow="rebuilt") as here:
        keys = here.session()
        here.expect("a sound credential", here.credential(keys), ALLOWED)
        last = here.cloud.last(f"{STS_ACTION}@{here.sts_host}")
        usual = _HEADERS | {name.lower() for name, _ in last["headers"]}
        _looks_rebuilt(here, usual)
        chosen: list[dict[str, Any]] = [
            {"order": "reversed"},
            {"case": "lower"},
            {"case": "upper"},
            {"headers": {"accept": "text/x-evil"}},
            {"headers": {"x-amz-target": "evil", "x-evil": "1"}},
            {"headers": {"content-type": "text/x-evil"}},
            {"extra": [["X-Evil", "1"]]},
            {"unsigned": [["X-Amz-Meta", "evil"]]},
            {"fragment": "evil"},
        ]
        for recipe in chosen:
            here.ask(here.credential(keys, **recipe))
            _looks_rebuilt(here, usual)
        mine = {name for name in here.cloud.counters() if name.endswith(f"@{here.sts_host}")}
        if others := sorted(mine - {f"{STS_ACTION}@{here.sts_host}"}):
            raise here.failed(f"STS was asked for {others}", expected=f"{STS_ACTION} alone")


_HEADERS = {"host", "x-iam-edge", "accept", "accept-encoding", "user-agent", "connection", "content-length"}
_QUERY = {
    "Action", "Version", "X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires",
    "X-Amz-Security-Token", "X-Amz-Signature", "X-Amz-SignedHeaders",
}  # fmt: skip


def _looks_rebuilt(here: Bench, usual: set[str]) -> None:
    """Look at the last call: it has no header beyond those of a sound credential's call."""
    last = here.cloud.last(f"{STS_ACTION}@{here.sts_host}")
    headers = [(name.lower(), value) for name, value in last["headers"]]
    query = parse_qs(last["query"], keep_blank_values=True)
    strange = {name for name, _ in headers} - usual
    strange |= {f"?{name}" for name in query if name not in _QUERY or len(query[name]) != 1}
    wrong = [value for name, value in headers if name == "x-iam-edge" and value != EDGE]
    wrong += [f"{name}: {value}" for name, value in headers if "evil" in value]
    if strange or wrong or last["path"] != "/" or last["method"] not in ("GET", "POST"):
        raise here.failed(
            f"the caller's own choice reached STS: {sorted(strange)} {wrong}",
            expected=f"headers {sorted(usual)}, query {sorted(_QUERY)}",
            received=str(last),
        )


@check("identity.caller.action", "STS-ACTION-001", features={"sts"})
def action(target: Target) -> None:
    """Another action never reaches STS.

    The check reads it from the cloud's counts under this flow's host.
    """
    with bench(target, WORLD, flow="actions") as here:
        keys = here.session()
        here.expect("a sound credential", here.credential(keys), ALLOWED)
        answer = refused("sts_rejected", "token_malformed")
        for name in ("AssumeRole", "GetSessionToken", "GetWebIdentityToken", "GetCallerIdentityX", "none"):
            here.expect(f"Action={name}", here.credential(keys, action=name), answer)
            if here.cloud.counters().get(f"{name}@{here.sts_host}", 0):
                raise here.failed(f"Action={name} reached STS", expected="no call")


@contextmanager
def _believed(target: Target, flow: str) -> Iterator[tuple[Bench, SessionKeys]]:
    """Lend a session whose STS confirms every caller, as a lenient emulator does."""
    with bench(target, WORLD, flow=flow) as here:
        keys = here.session()
        about = {"UserId": f"AROAX:{keys.arn.rpartition('/')[2]}", "Account": keys.arn.split(":")[4]}
        here.sts_fault("forge", members={"Arn": keys.arn, **about})
        here.expect("a sound credential", here.credential(keys), ALLOWED)
        yield here, keys
        here.sts_clear()


def _must_refuse(here: Bench, keys: SessionKeys, reason: str, dates: tuple[str, ...]) -> None:
    for date in dates:
        text = here.credential(keys, date=date, expires=900)
        here.expect(f"a date of {date}", text, refused(reason, "sts_rejected"))


@check("identity.caller.dates", "STS-DATE-001", "STS-DATE-002", features={"sts"})
def dates(target: Target) -> None:
    """Old dates, and those more than 15 minutes ahead, are refused though STS would accept them."""
    with _believed(target, "dates") as (here, keys):
        _must_refuse(here, keys, "token_expired", ("-901s", "-17m", "-3h", "-72h"))
        _must_refuse(here, keys, "token_not_yet_valid", ("+16m", "+24h"))


@check("identity.caller.brief", "STS-EXPIRY-001", "LIMIT-ROLE-001", features={"sts"})
def brief(target: Target) -> None:
    """A role's own lifetime counts from the date, and is over at its end for those too who wait for STS."""
    with bench(target, WORLD, flow="brief") as here:
        keys, now = here.session("brief"), int(time.time())
        seen = here.expect("a brief role", here.credential(keys, date=f"-{_BRIEF // 2}s"), ALLOWED)
        if not now <= int(seen.tags["expires"]) - _BRIEF // 2 <= math.ceil(time.time()):
            raise here.failed("the role's lifetime does not count from the date", seen)
        here.sts_fault("slow", seconds=here.seconds(_WAIT))
        end = time.time() + (left := round(here.seconds(_LEFT)))
        text = here.credential(keys, date=f"-{_BRIEF - left}s")
        here.in_time(end, "a question before the end of its role")
        ended = refused("token_expired", "sts_unavailable", status=[401, 503])
        here.expect("a role that ended meanwhile", text, ended)
        here.sts_clear()


@check("identity.caller.ahead", "STS-DATE-003", features={"sts"})
def ahead(target: Target) -> None:
    """Dates that are ahead by less are refused too, though AWS accepts them."""
    with _believed(target, "ahead") as (here, keys):
        _must_refuse(here, keys, "token_not_yet_valid", ("+45s", "+3m", "+14m"))


@check("identity.caller.size", "STS-SIZE-001", features={"sts"})
def size(target: Target) -> None:
    """The longest credential is judged, of 4095 bytes, because no base64url has 4085; one of 4097 is refused.

    The security token fills it up.
    """
    with _believed(target, "size") as (here, keys):
        for length, answer in ((_LONGEST, ALLOWED), (_LONGEST + 1, refused("token_too_large"))):
            text = here.credential(replace(keys, session_token="x"))  # noqa: S106 - no secret
            more = length - len(b64url_decode(text.partition(".")[2]))
            filled = replace(keys, session_token="x" * (1 + more))
            here.expect(f"a URL of {length} bytes", here.credential(filled), answer)


@check("identity.caller.auth", "STS-AUTH-001", features={"sts"})
def auth(target: Target) -> None:
    """A wrong secret, key, signature or security token is refused.

    Most of these credentials are well formed: only STS can see the fault.
    """
    with bench(target, WORLD, flow="auth") as here:
        keys, other = here.session(), here.session("passer-by")
        mixed = replace(keys, session_token=other.session_token)
        here.expect("a sound credential", here.credential(keys), ALLOWED)
        wrong: dict[str, str] = {
            "a wrong secret": here.credential(keys, secret="wrong"),  # noqa: S106 - a recipe's word
            "an unknown key": here.credential(keys, key_id="ASIA" + "Z" * 16),
            "another's key id": here.credential(keys, key_id=other.access_key_id),
            "a changed signature": here.credential(keys, signature="flipped"),
            "a short signature": here.credential(keys, signature="truncated"),
            "an upper-case signature": here.credential(keys, signature="upper"),
            "no signature": here.credential(keys, signature="empty"),
            "no security token": here.credential(keys, token="drop"),  # noqa: S106 - a recipe's word
            "a wrong security token": here.credential(keys, token="wrong"),  # noqa: S106 - a recipe's word
            "another's security token": here.credential(mixed),
        }
        for what, text in wrong.items():
            answer = refused("sts_rejected", "token_malformed") if what in _OF_FORM else REJECTED
            for _ in range(2):
                here.expect(what, text, answer)


_OF_FORM = {"a short signature", "an upper-case signature", "no signature", "no security token"}
"""An agent can see without STS that these are no signatures of a session."""


@check("identity.caller.expired", "STS-EXPIRY-002", features={"sts"})
def expired(target: Target) -> None:
    """A credential of a session that is over opens nothing.

    Signed while the session lived, and after its end.
    """
    with bench(target, WORLD, flow="expired") as here:
        keys = here.session()
        here.expect("while the session lives", here.credential(keys), ALLOWED)
        late = here.credential(keys, date="-5s")
        here.cloud.expire(keys)
        here.expect("after the session", late, _OVER)
        here.expect("signed after the session", here.credential(keys, date="-2s"), _OVER)
        json_type = {"Content-Type": "application/json"}
        here.sts_fault("status", status=400, body=_EXPIRED, xml=_EXPIRED_XML, headers=json_type)
        here.expect("a session that ended, by a 400", here.credential(here.session()), _OVER)
        here.sts_clear()


@check("identity.caller.ended", "STS-EXPIRY-003", features={"sts"})
def ended(target: Target) -> None:
    """A session that ends after its credential was accepted is refused within `recheck`.

    The world says `recheck = "1s"`; the credential itself would be good for another fifteen minutes. No
    question that is asked after that second is allowed, also if STS cannot say whether the session lives.
    """
    with bench(target, WORLD, flow="ended") as here:
        keys = here.session()
        credential = here.credential(keys)
        here.expect("while the session lives", credential, ALLOWED)
        here.expect("again, from memory", credential, ALLOWED)
        other = here.credential(here.session())
        here.expect("another session", other, ALLOWED)
        here.cloud.expire(keys)
        believed = time.time() + _RECHECK + _ROUNDED
        recording.timed(_RECHECK)
        while (asked := time.time()) < believed and here.ask(credential).opened:
            rest(_POLL)
        what = "after `recheck`" if asked >= believed else "once it was refused"
        here.expect(what, credential, _OVER)
        here.sts_fault("status", status=503, body="")
        unknown = refused("sts_unavailable", status=503)
        here.expect("another session, when STS cannot say", other, unknown, within=2 * _RECHECK)
        here.sts_clear()
        here.expect("another session, when STS can", other, ALLOWED, within=_RECOVERY)


@check(
    "identity.caller.end-to-end",
    "STS-AUTH-001",
    "STS-EXPIRY-002",
    "STS-DATE-001",
    "STS-BIND-002",
    lane="gate",
    features={"sts"},
)
def end_to_end(target: Target) -> None:
    """Through HAProxy: a wrong secret, an expired session, an old date and another edge are refused.

    A gate with a lenient cloud behind it lets these four in.
    """
    with bench(target, WORLD, flow="proxied") as here:
        keys = here.session()
        here.expect("a sound credential", here.credential(keys), ALLOWED)
        here.expect("a wrong secret", here.credential(keys, secret="wrong"), REJECTED)  # noqa: S106
        old = here.credential(keys, date="-17m", expires=900)
        here.expect("an old date", old, _OVER)
        here.expect("another edge", here.credential(keys, binding_value="edge-b"), REJECTED)
        here.cloud.expire(keys)
        here.expect("an expired session", here.credential(keys, date="-2s"), _OVER)


@check("identity.caller.account", "STS-ACCOUNT-001", features={"sts"})
def account(target: Target) -> None:
    """A role of an account that this STS may not assert opens nothing, and costs others nothing.

    Anyone can open an account, create the role and sign perfectly.
    """
    with bench(target, WORLD, flow="accounts") as here:
        here.expect("the right account", here.credential(here.session()), ALLOWED)
        keys = here.session(account=OTHER_ACCOUNT)
        for number in range(2 * _REFUSED):
            foreign = here.credential(keys, expires=100 + number // 2)
            here.expect("another account", foreign, refused("claim_invalid", "sts_rejected"))
        here.expect("the right account after many", here.credential(here.session()), ALLOWED)


@check("identity.caller.same-name", "PRINCIPAL-ACCOUNT-001", "PRINCIPAL-SESSION-001", features={"sts"})
def same_name(target: Target) -> None:
    """The same role and session names in another account never get the first account's verdict.

    The first verdict is in every cache; the second caller has all names alike but the account. In each other
    partition that 6.10 knows the role has a grant, which opens to it, signed for a region there.
    """
    with bench(target, WORLD, flow="labels") as here:
        mine, foreign = (
            here.session(account=number, name="alice") for number in ("111111111111", OTHER_ACCOUNT)
        )
        for _ in range(2):
            here.expect("the role", here.credential(mine), ALLOWED)
        here.expect("its namesake", here.credential(foreign), refused("no_grant", status=403))
        passer = here.session("passer-by", name="reader")
        here.expect("a session called reader", here.credential(passer), refused("no_grant", status=403))
        here.expect("the role again", here.credential(mine), ALLOWED)
        for role in here.loan.policy["roles"]:
            if role["name"].startswith("aws-"):
                keys = here.session(name="alice")
                arn = keys.arn.replace("arn:aws:", f"arn:{role['name']}:")
                about = {"Arn": arn, "UserId": "AROAX:alice", "Account": "111111111111"}
                here.sts_fault("forge", members=about)
                answer = ALLOWED.model_copy(update={"role": role["arn"], "principal": arn})
                signed = here.credential(keys, region=_REGIONS[role["name"]])
                here.expect(f"its namesake of {role['name']}", signed, answer)
        here.sts_clear()


_REGIONS = {
    "aws-cn": "cn-northwest-1", "aws-us-gov": "us-gov-west-1", "aws-iso": "us-iso-east-1",
    "aws-iso-b": "us-isob-east-1", "aws-iso-e": "eu-isoe-west-1", "aws-iso-f": "us-isof-south-1",
    "aws-eusc": "eusc-de-east-1",
}  # fmt: skip
"""A region of each partition, which callers write into the scope of their signature."""


@check("identity.caller.secrets", "PRINCIPAL-SECRET-001", features={"sts"})
def no_secrets(target: Target) -> None:
    """No token, signature, security token or secret is in the agent's log.

    Of good credentials and of bad ones, because a log says most about what the agent refuses; and where a
    client puts them that they do not belong, a token as a caller's name among them.
    """
    if not target.agent.runs:
        raise Inapplicable("process of its own")
    with bench(target, WORLD, "identity.caller.secrets", own=True, flow="secrets") as here:
        keys = here.session()
        tokens = [here.token("corp", sub="secretive", **change) for change in _CHANGES]
        credentials = [here.credential(keys, **change) for change in _CREDENTIAL_CHANGES]
        named = here.token("corp", key="ES256", claims={"jti": "s"}, drop=_UNNAMED)
        tokens += [named, here.token("corp", sub=named, claims={"jti": named})]
        for text in [*tokens, *credentials]:
            here.ask(text)
        here.ask("", authorization=[f"Bearer {tokens[0]} {tokens[0]}"])
        here.ask("", authorization=[f"Basic {tokens[0]}"])
        tokens.append(_SHORT)
        for text in (tokens[0], credentials[0], _SHORT):
            here.ask(text, path=f"/orders/{text}")
            here.ask(text, role="" if text is _SHORT else text[:600])
        for prefix in _PREFIXES:
            here.ask(tokens[0], path=f"/orders/{prefix}{_SHORT.partition('.')[0]}")
        here.world.agent.stop()  # an agent may write late, but not after its end
        written = [stream.lines() for part, stream in here.world.outputs() if part == "agent"]
        logs = "\n".join(line for lines in written for line in lines)
        hidden = [("the secret", keys.secret_access_key), ("the security token", keys.session_token or "")]
        for text in tokens:
            hidden += [(f"part {number} of a token", part) for number, part in enumerate(text.split("."))]
        for text in credentials:
            hidden += [("a credential", text), ("a signature", _signature(text))]
        found = sorted({what for what, secret in hidden if len(secret) > 20 and secret in logs})
        if found:
            raise here.failed(f"the agent's log holds {', '.join(found)}", expected="a hash at most")


_CHANGES: list[dict[str, Any]] = [
    {}, {"exp": "-1h", "iat": "-2h", "nbf": "-2h"}, {"signature": "flipped"}, {"aud": "canteen"},
    {"encoding": "padded"}, {"segments": 2}, {"raw_payload": "not json at all, but long enough to be seen"},
    {"duplicate": {"exp": ["-60s", "+5m"]}}, {"size": 9000},
]  # fmt: skip
_SHORT = "c2hvcnQtYnV0LXdob2xl4.VGhlIHNlY29uZCBwYXJ0Ig.dGhlIHRoaXJkIGFuZCBsYXN0"
"""Three runs of base64url, which this suite did not mint."""
_PREFIXES = ("iam-sts-v1%2e", "%69am%2Dsts-v1.", "%69%61%6d%2d%73%74%73%2d%76%31%2e")
"""Encoded spellings of the prefix (1.16). HAProxy decodes them before it asks the agent."""
_UNNAMED = ["iss", "iat", "nbf", "sub", "aud", "exp", "roles"]
"""Claims without which a token is short enough to be a principal (5.11)."""
_CREDENTIAL_CHANGES: list[dict[str, Any]] = [
    {}, {"secret": "wrong"}, {"action": "AssumeRole"}, {"date": "-1h"}, {"url_host": "evil.example"},
    {"extra": [["X-Evil", "1"]]}, {"encoding": "padded"},
]  # fmt: skip


def _signature(credential: str) -> str:
    try:
        url = b64url_decode(credential.partition(".")[2].partition(".")[2] or credential.partition(".")[2])
    except (ValueError, RecipeError):
        return ""
    return parse_qs(urlsplit(url.decode()).query).get("X-Amz-Signature", [""])[0]
