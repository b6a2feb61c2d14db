"""The requests of data/derived/mcp.toml, over SPOP and through HAProxy.

All tokens of a group have the same subject, session and `jti`: an agent that leaves a header out of its
memory answers a row with the answer to the one before it, forwards or backwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from urllib.parse import unquote, urlsplit

from iamroles_scenarios.checks.derived.world import SOURCE, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import table
from iamroles_scenarios.engine.answers import REASONS, read
from iamroles_scenarios.engine.bench import Bench, SpopQuestion, bench
from iamroles_scenarios.engine.http import Answer, HttpConnection, request_bytes
from iamroles_scenarios.engine.players import challenges
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.proof import combined
from iamroles_scenarios.wire.client import OMIT

POLICY, FEATURES = "mcp", {"mcp"}
TABLE: Mapping[str, Any] = table("mcp")
GROUPS: Mapping[str, Mapping[str, Any]] = TABLE["groups"]
FILES, NEW = "https://mcp.example/files", "2026-07-28"
_WELL_KNOWN = "/.well-known/oauth-protected-resource"
_WITHIN = 10.0
"""Seconds, times the scale, for an answer."""
_ISSUERS = ("corp", "partner", "guest", "twice")
CALL: Mapping[str, Any] = TABLE["call"]
"""The arguments of a call that is granted."""
FIELDS: Mapping[str, str] = TABLE["fields"]
"""The headers that become arguments."""
_NAMED = {"tools/call", "resources/read", "prompts/get"}
_GIVEN = {"allow": 200, "document": 200, "preflight": 204}


def metadata(resource: str) -> str:
    """Return the URL of a resource's metadata (RFC 9728 section 3.1); of none, ""."""
    at = urlsplit(resource)
    return f"{at.scheme}://{at.netloc}{_WELL_KNOWN}{at.path}" if resource else ""


def fits(rule: Mapping[str, Any], asked: Mapping[str, Any], *, known: bool) -> bool:
    """Tell whether a scope's region opens a request, of which a call is known or not."""
    path, host = unquote(asked["path"]).rstrip("/"), asked["host"].partition(":")[0].lower().rstrip(".")
    below = path == rule["path"] or (rule.get("match") != "exact" and path.startswith(f"{rule['path']}/"))
    called = {"method": asked["mcp-method"]}
    called |= {"name": asked["mcp-name"]} if asked["mcp-method"] in _NAMED else {}
    fitting = [entry for entry in rule.get("mcp") or () if entry.items() <= called.items()]
    return (
        below
        and asked["method"] in rule.get("methods", [asked["method"]])
        and host in rule.get("hosts", [host])
        and (not rule.get("mcp") or (known and bool(fitting)))
    )


@dataclass(frozen=True, slots=True)
class McpRow:
    """A request of a group, its token, and what must be seen."""

    what: str
    said: Mapping[str, Any]
    token: str | None
    words: frozenset[str]
    """The answers that it may get."""
    opens: frozenset[str] = frozenset()
    """The names of scopes that open it."""
    strict: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        return {name: self.said.get(name, value) for name, value in CALL.items()}

    @property
    def question(self) -> SpopQuestion:
        reasons = self.words - _GIVEN.keys()
        allow = {word == "allow" for word in self.words}
        found: dict[str, object] = {"reason": reasons | ({""} if self.words - reasons else set())}
        found["allow"] = allow if len(allow) > 1 else allow.pop()
        found["status"] = {_GIVEN.get(word) or REASONS[word][0] for word in self.words}
        if "rule" in self.said and self.words & {"allow", "denied_by_rule"}:
            found["rule"] = self.said["rule"]
        asked = {**iam_check(self.token), **self.asked, "role": self.said.get("role"), "src": SOURCE}
        return SpopQuestion(self.what, asked, found)

    def wrong(self, resource: str, scope: str, origin: str) -> Iterator[str]:
        """Find what is wrong with the resource, scope and origin that an answer names; "": none."""
        right, page = metadata(self.said["of"]), self.said.get("origin") or ""
        known = self.words & {"document", "preflight", "text_too_long", "path_ambiguous"}
        named = self.strict or self.words == {"allow"}
        if resource not in ({right} if named else {right, ""}) and not known:
            yield f"metadata at {resource!r}, not {right!r}"
        helped = any(word == "scope_insufficient" or REASONS.get(word, (0,))[0] == 401 for word in self.words)
        if not (self.opens if helped else frozenset()).issuperset(scope.split()) or (
            self.strict and scope != self.said.get("scope", scope)
        ):
            yield f"scope {scope!r}, not {self.said.get('scope', 'a name that opens it')!r}"
        permitted = "" if "origin_refused" in self.words or not right else page
        if (
            origin not in ({permitted} if self.strict and not known else {permitted, ""})
            and "document" not in known
        ):
            yield f"the origin {origin!r}, not {permitted!r}"


def document_wrong(here: Bench, row: McpRow, text: str) -> Iterator[str]:
    """Find what is wrong with the metadata of a resource."""
    if (own := TABLE["documents"].get(row.said["of"])) is None:
        yield "a document of no resource"
        return
    try:
        said = dict(json.loads(text))
        servers, scopes = sorted(said.get("authorization_servers", [])), said.get("scopes_supported", [])
        strange = {*scopes} - {one["name"] for one in here.loan.policy["scopes"]}
    except (ValueError, TypeError):
        yield f"the document is not an object of lists: {text[:80]!r}"
        return
    wanted = {"resource": row.said["of"]}
    if row.strict:
        wanted |= {"bearer_methods_supported": ["header"]}
        wanted |= {"scopes_supported": own["scopes"]} if "scopes" in own else {}
    for name, value in wanted.items():
        if said.get(name) != value:
            yield f"its {name} is {said.get(name)!r}, not {value!r}"
    if strange or servers != sorted(here.issuer(name).url for name in own["issuers"]):
        yield f"its issuers are {servers}, and {strange} are not scopes of the policy"
    if empty := [name for name in said if said[name] in ("", [], {}, None)]:
        yield f"empty members: {empty}"


def rows(here: Bench, group: Mapping[str, Any], *, strict: bool = False) -> Iterator[McpRow]:
    """Mint the tokens of a group, the same for the same recipe; of the grade strict, rows with one answer."""
    tokens: dict[str, str] = {}
    scopes = here.loan.policy["scopes"]
    for what, own in group["rows"].items():
        said = {**TABLE["usual"], **combined(group["usual"], own)}
        scope = {"scope": said["holds"]} if "holds" in said else {}
        claims = {"sub": "ann", "sid": "s", "jti": "one", **scope, **said.get("claims", {})}
        recipe = {name: said[name] for name in ("issuer", "roles", "aud", "drop")} | {"claims": claims}
        if (name := repr(recipe)) not in tokens:
            tokens[name] = here.token(key="ES256", **recipe)
        asked = {name: said.get(name, value) for name, value in CALL.items()}
        known = bool(
            said["of"] and asked["mcp-version"] == NEW and asked["method"] == "POST" and asked["mcp-method"]
        )
        known &= asked["mcp-method"] not in _NAMED or bool(asked["mcp-name"])
        opens = {one["name"] for one in scopes if fits(one, asked, known=known)}
        words = {said["exact"]} if strict and "exact" in said else set(said["answer"].split(" or "))
        sure = len(words) == 1 and (words == {"document"} or group is not GROUPS["metadata"])
        if not strict or (sure and said.get("lane") != "proxy"):
            token = None if said.get("bare") else tokens[name]
            yield McpRow(what, said, token, frozenset(words), frozenset(opens), strict)


@contextmanager
def serving(target: Target, owner: str = "", **how: Any) -> Iterator[Bench]:  # noqa: ANN401 - of `bench`
    """Yield a bench that asks lists of questions, in a world that has the keys of all issuers."""
    with bench(target, POLICY, owner, own=bool(owner), flow=POLICY, **how) as here, here.asking():
        tokens = [here.token(name, key="ES256", roles=["kiosk"]) for name in _ISSUERS]
        keys = [{**iam_check(token), **CALL, "host": "other.example"} for token in tokens]
        here.wait_for_keys([SpopQuestion("keys", one, {}) for one in keys])
        yield here


def _without_nulls(question: SpopQuestion) -> SpopQuestion:
    """Leave out each header's argument that is NULL, which is the same (SPEC.md 2.2), but never all."""
    absent = [name for name in FIELDS if question.check[name] is None]
    left_out = absent[1:] if len(absent) == len(FIELDS) else absent
    return replace(question, check={**question.check, **dict.fromkeys(left_out, OMIT)})


def by_spop(here: Bench, found: list[McpRow]) -> str:
    """Ask in order with NULLs, and backwards without."""
    forwards = [row.question for row in found]
    backwards = [_without_nulls(question) for question in forwards[::-1]]
    for ordered, questions in ((found, forwards), (found[::-1], backwards)):
        for worker in here.spread.askers():
            answers = here.actions(questions, window=1, of=worker)
            here.judge(questions, answers)
            for row, question, seen in zip(ordered, questions, map(read, answers), strict=True):
                wrong = [*row.wrong(*(str(seen.get(name, "")) for name in ("resource", "scope", "origin")))]
                if "document" in seen:
                    wrong += document_wrong(here, row, str(seen["document"]))
                if wrong:
                    here.note_wrong(f"{row.what}: {'; '.join(wrong)}", question, seen)
    return f"{here.asked} questions"


def request(row: McpRow) -> tuple[str, list[tuple[str, str]]]:
    """Return the target and the fields of a row's request."""
    asked, token = row.asked, row.token
    query = row.said.get("query", "").replace("{token}", token or "a.b.c")
    found = [("Host", asked["host"]), *([] if token is None else [("Authorization", f"Bearer {token}")])]
    found += [(name, asked[key]) for key, name in FIELDS.items() if asked[key] is not None]
    found += [("X-IAM-Role", row.said["role"])] if "role" in row.said else []
    found += [(name, value) for name, value in row.said.get("headers", ())]
    return asked["path"] + (f"?{query}" if query else ""), [
        *found,
        *map(tuple, TABLE["sent"]),
        ("Content-Length", "0"),
    ]


def exchange(here: Bench, method: str, target: str, fields: list[tuple[str, str]]) -> Answer:
    """Send a request on a connection of its own."""
    proxy = here.world.proxy
    with closing(HttpConnection((proxy.host, proxy.port), here.seconds(_WITHIN))) as line:
        return line.exchange(method, request_bytes(method, target, fields))


def through_proxy(here: Bench, row: McpRow) -> list[str]:
    """Send a row's request, and say what is wrong with what client and server see."""
    target, fields = request(row)
    answer = exchange(here, method := row.asked["method"], target, fields)
    statuses = {word: _GIVEN.get(word) or REASONS[word][0] for word in row.words}
    fitting = frozenset(word for word, status in statuses.items() if status == answer.status)
    wrong = [] if fitting else [f"status {answer.status}, not {sorted({*statuses.values()})}"]
    row = replace(row, words=fitting or row.words)
    reasons = row.words - _GIVEN.keys()
    reached = bool(answer.all("x-echo-backend"))
    if reached and "allow" not in row.words:
        wrong.append("it reaches a server")
    if reached and answer.status == 200:
        return [*wrong, *_forwarded(fields, json.loads(answer.body)["headers"])]
    shown = challenges(answer)
    said = [shown.get("Bearer", {}).get(name, "") for name in ("resource_metadata", "scope")]
    page = ",".join(answer.all("access-control-allow-origin")) if row.strict else ""
    if answer.status in (400, 401, 403):
        errors = set[str]().union(*(REASONS[word][1] for word in reasons)) or {""}
        if shown.get("Bearer", {"error": "(no challenge)"}).get("error", "") not in errors:
            wrong.append(f"the challenge {shown}, not an error of {sorted(errors)}")
    wrong += row.wrong(said[0], said[1], page) if answer.status != 204 and not reached else []
    if row.words & {"document", "preflight"} and row.strict:
        wrong += _browsers(answer, "*" if _WELL_KNOWN in unquote(target) else str(row.asked["origin"]))
    elif page and "WWW-Authenticate" not in ",".join(answer.all("access-control-expose-headers")):
        wrong.append("browsers do not see the challenge")
    if answer.status == 200 and "document" in row.words:
        kinds = [value.partition(";")[0].strip().lower() for value in answer.all("content-type")]
        if kinds != ["application/json"] or (method == "HEAD" and answer.body):
            wrong.append(f"not JSON alone: {answer.all('content-type')}")
        wrong += document_wrong(here, row, answer.body.decode()) if method != "HEAD" else []
    return wrong


def _browsers(answer: Answer, page: str) -> Iterator[str]:
    """Find what keeps a browser from an answer that the gate gives itself."""
    shown = {name: ",".join(answer.all(name)) for name, _ in answer.headers}
    if shown.get("access-control-allow-origin") != page:
        yield f"it permits the page {shown.get('access-control-allow-origin')!r}, not {page!r}"
    if answer.status == 200 and shown.get("cache-control") != "public, max-age=300":
        yield f"Cache-Control is {shown.get('cache-control')!r}"
    named = shown.get("access-control-allow-headers", "").lower()
    needed = ("authorization", "content-type", "mcp-protocol-version", "mcp-method", "mcp-name")
    missing = [name for name in needed if name not in named]
    if answer.status == 204 and (missing or "POST" not in shown.get("access-control-allow-methods", "")):
        yield f"it does not permit POST with {missing}"


def _forwarded(sent: list[tuple[str, str]], got: list[list[str]]) -> Iterator[str]:
    """Find headers of MCP that the server did not get as they came, and credentials that it got."""
    own = ("mcp-", "last-event-id", "authorization", "txn-token")
    came = sorted((name.lower(), value) for name, value in sent if name.lower().startswith(own[:2]))
    found = sorted((name.lower(), value) for name, value in got if name.lower().startswith(own))
    if [(name, value.strip(" \t")) for name, value in came] != found:
        yield f"the server got {found}, not {came}"


def _of(names: list[str], here: Bench, *, strict: bool = False) -> list[McpRow]:
    return [row for name in names for row in rows(here, GROUPS[name], strict=strict)]


def _declare(name: str, group: Mapping[str, Any], chosen: Callable[[Bench], list[McpRow]]) -> None:
    """Declare the checks of some rows in both lanes."""
    requirements, title = group["requirements"], group["title"]

    @check(f"mcp.{name}", *requirements, features=FEATURES, title=title)
    def _by_spop(target: Target) -> str:
        """Each row of data/derived/mcp.toml is asked in order, and backwards without NULLs."""
        with serving(target) as here:
            return by_spop(here, [row for row in chosen(here) if row.said.get("lane") != "proxy"])

    @check(f"mcp.proxy.{name}", *requirements, lane="gate", features=FEATURES, title=title)
    def _by_proxy(target: Target) -> str:
        """Each row of data/derived/mcp.toml goes through HAProxy."""
        with serving(target) as here:
            played = [row for row in chosen(here) if row.said.get("lane") != "spop"]
            for row in played:
                if wrong := through_proxy(here, row):
                    here.note_wrong(f"{row.what}: {'; '.join(wrong)}", row.question)
            return f"{len(played)} requests"


for _name, _group in GROUPS.items():
    _declare(_name, _group, partial(_of, [_name]))
for _name, _group in TABLE["strict"].items():
    _declare(f"strict.{_name}", _group, partial(_of, _group["groups"], strict=True))
