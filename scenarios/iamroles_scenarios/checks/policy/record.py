"""Policy checks of the record: HAProxy's log has each request, and no log has a secret."""

from __future__ import annotations

import json
import re
import secrets
from base64 import b64encode, urlsafe_b64decode
from collections.abc import Mapping
from itertools import product
from typing import Any
from urllib.parse import quote, urlsplit

from iamroles_scenarios.base.errors import CheckFailed, Evidence, Untestable
from iamroles_scenarios.base.sent import held, note
from iamroles_scenarios.checks.derived.world import edited
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.key_sets import listening, named, read_page
from iamroles_scenarios.engine.observation import Observation, differences
from iamroles_scenarios.engine.target import Target

_TABLE = table("record")
_WHO = ("principal", "role")
"""Fields that a refusal may leave out, or empty (SPEC.md 1.14, 3.1)."""


@check("policy.record.line", "AUDIT-LOG-001", lane="gate")
def line(target: Target) -> str:
    """The proxy's record says who did what with which role, or why not, and joins the backend's log.

    One line for each request; its request id is the backend's.
    """
    with bench(target, "policy") as here:
        for row in _TABLE["line"]:
            seen = here.ask(here.token(**row["token"]), **row.get("request", {}))
            if seen.record is None:
                raise here.failed(f"{row['what']}: HAProxy's log has no line for it", seen)
            _compare(row, seen, seen.record)
    return f"{len(_TABLE['line'])} requests"


def _compare(row: dict[str, Any], seen: Observation, record: Mapping[str, Any]) -> None:
    wanted: dict[str, object] = {
        name: set(value) if isinstance(value, list) else value for name, value in row["record"].items()
    }
    if "reason" in row["record"]:
        wanted |= {name: {row["record"][name], "-"} for name in _WHO if name in row["record"]}
        record = {**dict.fromkeys(_WHO, "-"), **record}
    if seen.allow:
        ids = [value for name, value in seen.headers if name == "x-iam-request-id"]
        wanted["request_id"] = ids[0] if len(ids) == 1 else "the one X-IAM-Request-Id that the backend got"
        wanted["expires"] = seen.tags.get("expires", "")
    if wrong := differences(wanted, record):
        evidence = Evidence(sent=seen.sent, expected=str(wanted), received=json.dumps(record))
        raise CheckFailed(f"{row['what']}: {'; '.join(wrong)}", evidence)


_SHORT, _MANY, _PART, _LONG = 260, 10, 150, 1000
"""Characters of a credential that is a host too, and how often it stands in a path: 4096 bytes hold that; and
of a secret that is a role, which an agent may record cut; segments of a path too long for a record."""
_RUN = 16
"""Characters of the shortest run of a token."""
_PAGES = ("show info", "show stat", "show table", "show servers state")
"""HAProxy's own pages that say something about requests."""


@check("policy.record.credentials", "AUDIT-SECRET-001", lane="gate", last=True)
def credentials(target: Target) -> str:
    """Nothing that agent and proxy write in a run holds a credential of the run, refused ones included.

    The check sends each kind of credential in each place of a request, and then policies with a password in
    a URL. Then it searches logs, record, pages and metrics, and the logs of all worlds before it, for the
    password, and for every token and pre-signed URL that the run made.
    """
    if not target.lacks(["mcp"]):
        _name_calls(target)
    if not target.lacks(["actor"]):
        _name_actors(target)
    sts, leaks = not target.lacks(["sts"]), target.worlds.leaks
    world = ("identity-sts" if sts else "policy", "policy.record.credentials")
    with bench(target, *world, own=True, flow="hosts", metrics=listening(target.stage)) as here:
        for recipe in ({}, *_TABLE["refused"]):
            _send(here, here.token(**recipe))
        for recipe in ({}, *_TABLE["unproven"]) if sts else ():
            _send(here, here.credential(here.reader, **recipe))
        for fault in _TABLE["faults"] if sts else ():
            here.sts_fault(**fault)
            _send(here, here.credential(here.reader))
        if sts:
            _send_parts(here, here.credential(here.reader))
        _send_runs(here)
        if not target.lacks(["reload"]):
            _reload_with_passwords(here)
        pages = {page: here.world.haproxy.runtime(page) for page in _PAGES}
        pages["the agent's metrics"] = "".join(map(read_page, named([here.world.agent], "metrics")))
    found = [f"{page}: {', '.join(sorted(names))}" for page, text in pages.items() if (names := held(text))]
    if found := [*found, *leaks.found()]:
        raise CheckFailed("; ".join(found), Evidence(expected="no credential", logs=here.world.logs()))
    if not leaks.letters:
        raise Untestable("neither the agent nor HAProxy wrote anything that could be searched")
    missed = f"; {leaks.missed} lines were not kept, and not searched" if leaks.missed else ""
    return f"{leaks.letters} characters written{missed}"


def _name_calls(target: Target) -> None:
    """Send tokens as the name of a call of MCP, as they are and in base64."""
    with bench(target, "mcp", changes=False) as here:
        token = here.token(key="ES256", roles=["kiosk"], aud="https://mcp.example/files")
        for name in (token, f"=?base64?{b64encode(token.encode()).decode()}?="):
            fields = [*map(list, _TABLE["call"].items()), ["Mcp-Name", name]]
            here.ask(
                token, with_reason=False, method="POST", host="mcp.example", path="/files", headers=fields
            )


def _name_actors(target: Target) -> None:
    """Send a token as the name of the actor, and of a former one."""
    with bench(target, "delegation", changes=False) as here:
        name = here.token(key="ES256")
        for act in ({"sub": name}, {"sub": "bot", "act": {"sub": name}}):
            token = here.token(key="ES256", roles=["kiosk"], claims={"act": act})
            here.ask(token, with_reason=False, path="/open")


def _send_parts(here: Bench, credential: str) -> None:
    """Send what makes a pre-signed URL a secret as it stands in the URL, and a word behind its prefix."""
    for mark in (".", "=", "%3D"):
        word = secrets.token_urlsafe(32)
        path = f"/orders/iam-sts-v1.QUFB{mark}{note('pre-signed URL', word, word)}"
        here.ask(here.token(), with_reason=False, path=path)
    url = urlsafe_b64decode(f"{credential.rpartition('.')[2]}==").decode()
    for part in urlsplit(url).query.split("&"):
        name, _, value = part.partition("=")
        if name in ("X-Amz-Signature", "X-Amz-Security-Token"):
            run = max(re.findall(r"[\w-]+", value), key=len)  # the part that `held` knows
            text, escaped = (f"{name}{mark}{run[:_PART]}" for mark in ("=", "%3D"))
            places = {"role": f"x?{text}"}, {"path": f"/orders/x&{text}"}, {"path": f"/orders/{escaped}"}
            for request in places:
                here.ask(here.token(), with_reason=False, **request)


def _send_runs(here: Bench) -> None:
    """Send what is just long enough for a token (SPEC.md 1.16), with a secret as each of its runs."""
    for at, place in product(range(3), ("/orders/", "/orders/1?a=")):
        runs = [_RUN * "x"] * 3
        runs[at] = note("token", word := secrets.token_urlsafe(32), word)
        here.ask(here.token(), with_reason=False, path=place + ".".join(runs))


def _reload_with_passwords(here: Bench) -> None:
    """Write a URL with a password in each place of a policy, which an agent may refuse, or use."""
    for (place, edits), begins in product(_TABLE["urls"].items(), ("", "x@")):
        password = note(f"password of {place}", word := secrets.token_urlsafe(32), word)
        url = f"https://gate:{begins}{password}@127.0.0.1:9"
        here.reload(edited(here.loan.policy, filled(edits, {"url": url})))
        here.ask(here.token(), with_reason=False)
    _send(here, here.token())


def _send(here: Bench, token: str) -> None:
    """Send a credential in each place of a request; no refusal may show it."""
    path = quote(token, safe=".")[:2000]
    places: list[dict[str, Any]] = [{"authorization": form} for form in _TABLE["forms"]]
    places += [{"path": f"/orders/{path}"}, {"path": f"/orders/1?access_token={path}"}]
    places += [{"role": path}, {"path": f"/orders/{path}{_LONG * '/x'}"}]
    if len(path) < _SHORT:
        places += [{"path": f"/orders{_MANY * f'/{path}'}"}, {"host": path}]
    for request in places:
        seen = here.ask(token, with_reason=False, **request)
        if seen.leaked:
            raise here.failed(f"a refusal holds {', '.join(seen.leaked)}", seen, "no credential")
