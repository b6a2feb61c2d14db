"""Each row of the derived tables, and each pair of keys of a revocation, played under open streams.

SPEC.md 9.4 and 9.13 end a stream when a new request with its credential would be refused. The tables of
`checks/derived/` say what such a request would get. So each row opens streams that one of its two policies
allows and the other does not, and others that both allow; the reload between the two must end exactly the
former. Hundreds of streams share a world and a reload.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import secrets
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import parse_qs, urlsplit

from iamroles_scenarios.checks.derived import issuers, rules
from iamroles_scenarios.checks.derived.world import HOST, PATH, POLICY, SOURCE, Policy, iam_check
from iamroles_scenarios.checks.live.crowd import Crowd, crowd
from iamroles_scenarios.checks.live.fixture import LiveBench, live_bench
from iamroles_scenarios.checks.oracle.judge import Outcome, judge
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import ARN, filled, table
from iamroles_scenarios.engine.answers import ALLOW, expected
from iamroles_scenarios.engine.bench import EDGE, SpopQuestion
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import b64url_decode

_BACKENDS = ("orders-ro", "orders-rw")
"""Backends of the world; HAProxy knows no others."""
_ROUTE = "/live/reader"
_LIFE = 9.0
"""Seconds, times the scale, up to three times: for all questions with fresh credentials in a row."""
_SIGNED = 900
"""Seconds that a pre-signed request lives (5.14)."""
_NEAR, _FAR = 20, 140
"""Seconds for which a token is fit at least: one of the rows of `leeway`, which come last, and any other."""
_SPARE, _GRACE = 5, 30
"""All streams begin so many seconds before the first token may end; a reload that comes so many seconds
after that moment may be too late to end a stream.
"""
_EACH = 2
"""Streams of a row and a direction that end, and the same number that stay, at most."""
_USUAL = {"method": "GET", "host": HOST, "path": PATH, "src": SOURCE, "role": None}
EXEMPT: Mapping[str, str] = table("streams")["exempt"]
"""Rows that no stream plays though they end an allow, and why."""


@dataclass(frozen=True, slots=True)
class PlayedRow:
    """A stream that a row of a table opens, and whether the change of the policy must end it."""

    key: str
    what: str
    without: bool
    """Which of the row's two policies allows it: that without the key."""
    ends: bool
    said: Policy
    """Claims of its credential; times are in seconds from the moment at which it is made."""
    mint: Callable[[LiveBench, Policy, int], str]
    asked: Mapping[str, Any]
    room: str = ""


def _few(found: list[PlayedRow]) -> Iterator[PlayedRow]:
    """Yield those at the ends of a row's list: of each direction some that end, and some that stay."""
    for kind in itertools.product((False, True), repeat=2):
        same = [row for row in found if (row.without, row.ends) == kind]
        yield from (same if len(same) <= _EACH else [same[0], same[-1]])


def _fate(before: Outcome, after: Outcome) -> bool | None:
    """Return whether a stream ends when the one answer becomes the other; None: it is not there, or open."""
    if before.backend not in _BACKENDS:
        return None
    if not after.allow or after.backend != before.backend:
        return True
    return False if after.roles == before.roles else None


def outcomes(edge: rules.Edge, base: Policy, said: Policy, asked: Policy) -> list[Outcome]:
    """Return the oracle's answers with the edge's key and without it."""
    now, question = int(time.time()), {**_USUAL, **asked}
    policies = [rules.policy_with(base, [edge], without=without) for without in (False, True)]
    return [judge(policy, rules.claims_of(said, now), question, now) for policy in policies]


def of_rules(base: Policy, edges: list[rules.Edge]) -> Iterator[PlayedRow]:
    """Yield the streams of the keys of rules, roles, groups and backends."""
    for edge in edges:
        found = []
        for said, asked in edge.asked:
            if asked.get("method") == "HEAD":
                continue  # its answer is over at once
            pair = outcomes(edge, base, said, asked)
            for without, (before, after) in enumerate((pair, pair[::-1])):
                if (ends := _fate(before, after)) is not None:
                    what = f"{edge.key} = {edge.value!r}, asked with {said} {asked}"
                    ask = {**_USUAL, **asked}
                    how = (ends, said, rules.token_of, ask, edge.room)
                    found.append(PlayedRow(edge.key, what, bool(without), *how))
        yield from _few(found)


def of_issuers(name: str) -> Iterator[tuple[int, str, Policy, list[PlayedRow]]]:
    """Yield number, key, row, and streams of each row of a table of `issuers.TABLES`.

    If another claim is read now, an agent without the token may end what would still be allowed (9.13).
    """
    every = [(key, row) for key, rows in issuers.TABLES[name].items() for row in rows]
    for number, (key, row) in enumerate(every):
        found = []
        usual = {"iss": f"https://issuer{number}.example", "roles": [f"{ARN}kiosk"]}
        for claims, *answers in filled(row["asked"], {"n": number}):
            said = usual | issuers.joined(row.get("claims", {}), claims)
            ask = {**_USUAL, "role": said.get("role")}
            for without, (before, after) in enumerate((answers, answers[::-1])):
                allowed = [isinstance(each, Mapping) or each == "allow" for each in (before, after)]
                reread = key.endswith("_claim") or key == "profile" or "allow" not in (before, after)
                if not allowed[0] or after == "open" or (allowed[1] and reread):
                    continue
                what = f"{name}.{key} = {row['values'][0]!r}, asked with {said}"
                found.append(PlayedRow(key, what, bool(without), not allowed[1], said, issuers.token_of, ask))
        yield number, key, row, list(_few(found))


def _played(
    all_: Crowd, rows: list[PlayedRow], policies: Callable[[bool], dict[str, Any]], what: str
) -> None:
    """Open what each of two policies allows, and reload the other."""
    here = all_.here
    for without in (False, True):
        asked = [row for row in sorted(rows, key=lambda row: row.key == "leeway") if row.without == without]
        if not any(row.ends for row in asked):
            continue
        here.must_reload(policies(without), what)
        first = [(row.mint(here, row.said, int(time.time())), row.asked) for row in asked]
        here.wait_for_keys([SpopQuestion("", iam_check(token, **each), ALLOW) for token, each in first])
        until = math.inf
        for row in asked:
            now = int(time.time())  # keys may have come late
            until = min(until, now + (_NEAR if row.key == "leeway" else _FAR))
            sent = {key: value for key, value in row.asked.items() if value is not None or key == "role"}
            all_.join(row.what, row.mint(here, row.said, now), ends=row.ends, **sent)
        all_.must_begin(until - _SPARE)
        here.must_reload(policies(not without), what)
        here.in_time(until + _GRACE, f"the reload of {what}")
        all_.must_split(f"the reload of {what}", until=until)


@check(
    "live.derived.policy",
    *("LIVE-POLICY-002", "LIVE-POLICY-004", "LIVE-KEEP-001"),
    features={"live", "oidc", "reload"},
)
def policy(target: Target) -> str:
    """Each key of a rule and of an issuer ends the streams whose requests it would refuse, and no others.

    All rows at once: a reload takes the keys away, and another one brings them back. Then each bound of all
    issuers, alone.
    """
    streams = [{"name": name, "streams": True} for name in _BACKENDS]
    with crowd(target, "live.derived.policy", POLICY, backends=streams) as all_, all_.here.asking():
        here = all_.here
        here.issuer("partner")
        base = {**here.loan.policy, "denies": []}  # its own would refuse each `guard`
        edges, keys = rules.edges(), list(of_issuers("issuers"))

        def changed(without: bool) -> dict[str, Any]:
            added = [issuers.entry_of(number, key, row, without=without) for number, key, row, _ in keys]
            added = here.loan.own({"issuers": added})["issuers"]
            return {**rules.policy_with(base, edges, without=without), "issuers": [*base["issuers"], *added]}

        rows = [*of_rules(base, edges), *(row for *_, some in keys for row in some)]
        _played(all_, rows, changed, "the keys of rules and issuers")
        for number, key, row, bounded in of_issuers("limits"):
            entry = here.loan.own(issuers.entry_of(number, "", row, without=False))
            values = [issuers.value_of(row, without=without) for without in (False, True)]
            tables = [{} if value is None else {"limits": {key: value}} for value in values]
            policies = [{**base, "issuers": [*base["issuers"], entry], **limits} for limits in tables]
            _played(all_, bounded, policies.__getitem__, f"limits.{key}")
        return f"{all_.played} streams"


@check(
    "live.sts.ends",
    *("LIVE-POLICY-003", "LIVE-REVOKE-001", "LIVE-KEEP-001"),
    features={"live", "sts", "reload"},
)
def endpoints(target: Target) -> str:
    """An STS endpoint by which a pre-signed request would be refused ends its stream, whichever key says so.

    One endpoint for each key, and an endpoint that stays as it is. So does a revocation of a request, of its
    principal and of its session, whatever date it spares.
    """
    stricter: list[Policy] = table("streams")["endpoints"]
    usual = {"endpoint": "{sts}", "binding_value": EDGE, "insecure_http": True}
    hosts = [f"ends-{number}{{suffix}}.sts.example" for number in range(len(stricter))]
    entries = [{"name": f"sts-{number}", "hosts": [host], **usual} for number, host in enumerate(hosts)]
    with crowd(target, "live.sts.ends", "live", revoking=True, sts=entries) as all_:
        here, policy = all_.here, all_.here.loan.policy
        for more, entry in zip(stricter, policy["sts"], strict=True):
            credential = here.credential(here.session(), host=entry["hosts"][0])
            all_.join(f"an endpoint that gets {more}", credential, path=_ROUTE, ends=bool(more))
        revoked = []
        for number, kind in enumerate(("credentials", "principals", "sessions")):
            credential = here.credential(keys := here.session(), host=policy["sts"][-1]["hosts"][0])
            name = (hash_of(credential), keys.arn, keys.arn.rpartition("/")[2])[number]
            revoked.append({"id": kind, kind: [name], "issued_before": 0})
            all_.join(f"a request that is revoked by {kind}", credential, path=_ROUTE, ends=True)
        all_.must_begin()
        pairs = zip(policy["sts"], stricter, strict=True)
        changed = [{**entry, **more} for entry, more in pairs if "gone" not in more]
        here.must_reload({**policy, "sts": changed}, "it lets less in")
        here.revoke_all(revoked)
        all_.must_split("the reload of endpoints, and revocations")
        return f"{all_.played} streams"


# --- revocations ------------------------------------------------------------------------------------------

KEYS: Mapping[str, Mapping[str, Any]] = table("streams")["revocations"]
"""Those by which a revocation names credentials: what row `n` names, and the claims of a token that fits."""

Case = tuple[frozenset[str], int | None]
"""A credential for a revocation: the keys that it fits, and its `iat` in seconds from the bound."""


def revocations() -> Iterator[tuple[tuple[str, ...], bool, list[Case]]]:
    """Yield each key and each pair of keys, whether `issued_before` stands beside them, and credentials.

    Credentials that fit all of them, of every date, and those that fit all but one.
    """
    for size, bounded in itertools.product((1, 2), (False, True)):
        for named in itertools.combinations(KEYS, size):
            whole = [(frozenset(named), iat) for iat in (-1, 0, None)]
            yield named, bounded, [*whole, *((frozenset(named) - {key}, -1) for key in named)]


def revoked(named: tuple[str, ...], case: Case, *, bounded: bool) -> bool:
    """Decide as 9.6 says."""
    return case[0] == set(named) and not (bounded and case[1] == 0)


def hash_of(token: str) -> str:
    """Name a token, or a pre-signed request, as 9.6 says."""
    named = token.rpartition(".")[0]
    if named == "iam-sts-v1":
        url = b64url_decode(token.rpartition(".")[2]).decode()
        named = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    return "sha256:" + hashlib.sha256(named.encode()).hexdigest()[:16]


def _token(here: LiveBench, number: int, case: Case, bound: int) -> tuple[str, str | None]:
    """Mint a credential for a row; return it and the role to ask for: it may hold the revoked role unused."""
    claims: dict[str, Any] = {"exp": bound + 900, "roles": [f"{ARN}reader"], "mark": secrets.token_hex(4)}
    fits, iat = case
    for key in fits:
        claims |= filled(KEYS[key]["claims"], {"n": number})
    if iat is None:
        claims["roles"] = list(dict.fromkeys((f"{ARN}reader", *claims["roles"])))
        return here.token(claims=claims, drop=["iat"]), "reader"
    return here.token(claims={**claims, "iat": bound + iat}), None


@check(
    "live.derived.revocations",
    *("LIVE-REVOKE-003", "LIVE-REVOKE-006", "LIVE-KEEP-001"),
    features={"live", "oidc"},
)
def pairs(target: Target) -> str:
    """A revocation ends the streams of the credentials that fit all its keys, and no others.

    Each key and each pair of keys, with `issued_before` and without; all in one file. Tokens from the second
    of `issued_before`, from the second before it, and without `iat`. Moments are at several offsets.
    """
    rows = list(revocations())
    arns = [filled(KEYS["roles"]["claims"]["roles"][0], {"n": number}) for number in range(len(rows))]
    roles = [{"name": f"r{number}", "arn": arn} for number, arn in enumerate(arns)]
    grant = {"id": "L1", "roles": ["reader", *(role["name"] for role in roles)]}
    entries = [*map(issuers.entry, range(len(rows))), issuers.entry(len(rows), name="nobody")]
    tables = {"issuers": entries, "roles": roles, "grants": [grant]}
    name = "live.derived.revocations"
    with crowd(target, name, "live", revoking=True, **tables) as all_, all_.here.asking():
        here, bound, questions = all_.here, int(time.time()) - 30, []
        others, moment = table("streams")["others"], datetime.fromtimestamp(bound, UTC)
        west, east = (moment.astimezone(timezone(timedelta(hours=hours))) for hours in (-5, 5.5))
        spelt = [bound, moment, moment.isoformat(), moment.isoformat().replace("+00:00", "Z")]
        spelt += [west, east.isoformat(), west.isoformat()]
        spelt.append((moment - timedelta(milliseconds=500)).isoformat())
        strangers = itertools.islice(itertools.cycle(others["rows"]), others["many"])
        lines = [filled(row, {"n": n}) for n, row in enumerate(strangers)]
        for number, (named, bounded, credentials) in enumerate(rows):
            forms = {key: KEYS[key]["names"] for key in named}
            row = {key: filled(form[number % len(form)], {"n": number}) for key, form in forms.items()}
            made = [(each, *_token(here, number, each, bound)) for each in credentials]
            for each, token, role in made:
                ends = revoked(named, each, bounded=bounded)
                what = f"{named}{', issued_before' * bounded}; fits {sorted(each[0])}, iat {each[1]}"
                question = iam_check(token, path=_ROUTE, role=role)
                questions.append((what, question, ends))
            if "credentials" in named:
                row["credentials"] = [hash_of(token) for each, token, _ in made if "credentials" in each[0]]
            if "roles" not in named:  # a row that is narrower by one key, before its own
                lines.append({"id": f"beside{number}", **row, **others["beside"]})
            said = {"issued_before": spelt[number % len(spelt)]} if bounded else {}
            added = bound + (-3600, 3600)[number % 2]  # counts for nothing
            lines.append({"id": f"row {number}, é", "added": added, **row, **said})
        here.wait_for_keys([SpopQuestion(what, question, ALLOW) for what, question, _ in questions])
        for what, question, ends in questions:
            token = question["authorization"].partition(" ")[2]
            all_.join(what, token, ends=ends, path=_ROUTE, role=question["role"])
        all_.must_begin()
        here.revoke_all(lines)
        all_.must_split("the revocation")
        answers = (ALLOW, expected("credential_revoked"))
        asked = [SpopQuestion(what, question, answers[ends]) for what, question, ends in questions]
        here.ask_all(asked, again=False)
        return f"{all_.played} streams, {len(rows)} revocations"


# --- likenesses, and media types --------------------------------------------------------------------------


@check("live.derived.likeness", "LIVE-RENEW-003", "LIVE-RENEW-007", features={"live", "renew", "oidc"})
def likeness(target: Target) -> str:
    """A fresh credential of which one likeness differs, or that does not permit the stream's own request,
    prolongs nothing.

    A stream for each difference, and for each difference that counts for nothing; all end together. With the
    feature `sts` also one of a pre-signed request, and a later one of its session.
    """
    found = table("streams")
    signs = [] if target.lacks(["sts"]) else [found["endpoint"]]
    with crowd(target, "live.derived.likeness", "live-renew", **found["renewing"], sts=signs) as all_:
        here = all_.here
        end = here.end(_LIFE)

        def token(row: Mapping[str, Any], number: int, exp: int, **recipe: Any) -> str:  # noqa: ANN401
            who = {"sub": f"who{number}", "sid": f"session{number}", "roles": [f"{ARN}reader"]}
            who = {name: value for name, value in who.items() if name not in rows[number].get("drop", ())}
            return here.token(claims={**who, **row.get("claims", {})}, exp=exp, **recipe)

        rows: list[Mapping[str, Any]] = found["likeness"]
        for number, row in enumerate(rows):
            ends = not row.get("prolongs")
            how = {"path": "/renewing/own", "role": "reader", **row.get("opens", {})}
            all_.join(row["differs"], token({}, number, end), ends=ends, **how)
        for entry in here.loan.policy["sts"]:
            here.sts_host = entry["hosts"][0]
            signed = here.credential(keys := here.session(), end - _SIGNED, expires=_SIGNED)
            all_.join("nothing but the date of a pre-signed request", signed, path="/renewing/own")
        all_.must_begin(end - 1)
        if signs and all_.status("a later request", here.credential(keys), path="/renewing/rest") != 200:
            raise here.failed("a later pre-signed request of a stream's session is refused")
        for number, row in enumerate(rows):
            fresh = token(row, number, end + 600, key=row.get("key", "RS256"))
            ask = {"path": "/renewing/rest", **row.get("opens", {}), **row.get("ask", {})}
            seen = all_.status(row["differs"], fresh, **ask)
            if seen != row.get("status", 200):
                raise here.failed(f"a question with another {row['differs']}: status {seen}")
            if row.get("beside"):
                all_.status("beside", token({}, number, end + 300), path="/renewing/rest", role="reader")
        here.in_time(end - 1, "the questions with fresh credentials")
        all_.must_split("their first credentials' end", end)
        return f"{all_.played} streams"


@check("live.derived.types", "LIVE-REFUSE-002", features={"live"})
def types(target: Target) -> str:
    """A backend without streams refuses an event stream however its media type is spelt, and nothing else.

    Letter case, parameters and blanks vary; then types that only look alike.
    """
    with live_bench(target, "live.derived.types") as here, closing(Crowd(here)) as all_:
        token, wrong = here.token(exp="+15m"), []
        for wanted, spelt in table("streams")["types"].items():
            for text in spelt:
                path = f"/plain/a?quiet=1&type={urlsafe_b64encode(text.encode()).decode().rstrip('=')}"
                seen = all_.status(text, token, path=path, src=None, accept="*/*")
                if seen < 400 if wanted == "refused" else seen != 200:
                    wrong.append(f"{text!r}: status {seen}, expected to be {wanted}")
        if wrong:
            raise here.failed(f"long answers of a backend without streams: {'; '.join(wrong)}")
    return ""
