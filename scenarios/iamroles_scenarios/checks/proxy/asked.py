"""Questions that other checks put over SPOP alone, asked through the proxy (SPEC.md 1.21).

The derived checks put arguments to the agent as a sound proxy would. Here a client puts them to the proxy. It
sends the values of each argument, the neighbours of each text that HTTP carries, and headers that might stand
for more (data/derived/asked.toml). A proxy that splits a list, or changes a case, asks another question.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, cast

from iamroles_scenarios.base.errors import HttpFault
from iamroles_scenarios.checks.derived.arguments import ARGUMENTS
from iamroles_scenarios.checks.derived.exact import EXACT, neighbours
from iamroles_scenarios.checks.derived.world import HOST, PATH, POLICY, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.answers import OPEN, REASONS, REFUSE, Expected, expected
from iamroles_scenarios.engine.bench import Bench, bench
from iamroles_scenarios.engine.http import HttpConnection
from iamroles_scenarios.engine.observation import Observation
from iamroles_scenarios.engine.players import observed
from iamroles_scenarios.engine.target import Target

Question = tuple[str, Mapping[str, Any], Expected]
_WITHIN = 10.0
CARRIED = ("scheme", "role by name", "role by ARN", "method", "host", "path")
"""Texts of `EXACT` that HTTP carries; the others are within the token."""
_TOKEN = re.compile(r"[\w-]{20,}\.[\w-]{20,}\.[\w-]{20,}")
_BROKEN = frozenset("\r\n\0")
"""Characters that end a header: with them the request is another."""


def _raw(asked: Mapping[str, Any]) -> bytes:
    """Return the request that stands for arguments of iam-check, and for `headers` beside them."""
    headers = [] if asked["host"] is None else [("Host", asked["host"])]
    credentials = asked["authorization"]
    if not isinstance(credentials, list):
        credentials = [] if credentials is None else [credentials] * asked.get("authorization-count", 1)
    headers += [("Authorization", text) for text in credentials]
    if asked.get("role") is not None:
        headers.append(("X-IAM-Role", asked["role"]))
    headers += [*asked.get("headers", ()), ("Connection", "close")]
    lines = [f"{asked['method']} {asked['path']} HTTP/1.1", *(f"{name}: {text}" for name, text in headers)]
    return "\r\n".join([*lines, "", ""]).encode()


def _questions(here: Bench) -> Iterator[Question]:
    for name, values in ARGUMENTS.items():
        for value, answer in values:
            token = here.token(roles=["kiosk", "clerk"] if name == "role" else ["kiosk"])
            asked = iam_check(token) | {name: value}
            if name == "authorization" and value:
                asked = iam_check(here.token(roles=[value]))
            # No client says its address or sends thousands of credentials; `?` begins a query.
            count = value if name == "authorization-count" else 1
            if name != "src" and 0 < (count or 0) < 9 and (name != "path" or "?" not in value):
                yield f"{name} {value!r}", asked, expected(answer)
    changed = table("asked")["otherwise"]
    for name in CARRIED:
        row = EXACT[name]
        for what, text in neighbours(row.text):
            if not _BROKEN & set(text):
                answer = (row.alike or {}).get(what, REFUSE)
                answer = expected(changed[name][what]) if what in changed.get(name, {}) else answer
                yield f"{name} with {what}: {text!r}", row.ask(here, text), answer
    for what, (changes, said) in table("asked")["requests"].items():
        token = here.token(roles=["kiosk", "clerk"], claims={"more": "x" * changes.get("more", 0)})
        good = iam_check(token, role="kiosk")
        more = filled(changes, {"token": token, "host": HOST, "path": PATH})
        yield what, {**good, **more, "role": more.get("role", "kiosk") or None}, expected(said)


@check("proxy.derived.asked", "PROXY-ASKED-001", lane="gate", features={"oidc"}, long=True)
def asked(target: Target) -> str:
    """The proxy asks the agent about the request as the client sent it, and about nothing else.

    Arguments and comparisons of the derived checks, lists in headers, and headers that others believe.
    """
    count, wrong = 0, list[tuple[str, Observation, str]]()
    with bench(target, POLICY) as here:
        address = here.world.proxy.host, here.world.proxy.port
        for what, question, answer in _questions(here):
            count, raw = count + 1, _raw(question)
            try:
                with closing(HttpConnection(address, here.seconds(_WITHIN))) as line:
                    got = line.exchange(str(question["method"]), raw)
            except HttpFault as error:
                raise here.failed(f"{what}: {error}") from error
            seen = observed(got, raw, _TOKEN.findall(raw.decode("latin-1")))
            if not _right(answer, seen):
                wrong.append((f"{what}: {got.status} {seen.backend}", seen, str(dict(answer))))
    if wrong:
        sentences = "; ".join(sentence for sentence, *_ in wrong[:8])
        raise here.failed(f"{len(wrong)} answers: {sentences}", wrong[0][1], wrong[0][2])
    return f"{count} questions"


def _right(answer: Expected, seen: Observation) -> bool:
    """Tell if a client saw the answer; a proxy may refuse with 400 what it cannot ask about (501: 1.20)."""
    reasons = answer.get("reason", ())
    names = {reasons} if isinstance(reasons, str) else set(cast("Iterable[str]", reasons))
    statuses = {REASONS[name][0] for name in names} | {400} if names else {400, 401, 403}
    if answer == OPEN or seen.unknown:
        return True
    return seen.allow if answer.get("allow") else not seen.allow and seen.status in statuses
