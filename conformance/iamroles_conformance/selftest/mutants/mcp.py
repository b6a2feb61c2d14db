"""Mutants of MCP servers behind the gate, in the agent and in the gate's configuration."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from iamroles_agent.base.identity import NO_HEADERS
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.live import judge
from iamroles_agent.policy import checks, compiled, regions, resources
from iamroles_agent.policy.compiled import Policy
from iamroles_agent.policy.regions import Region
from iamroles_agent.policy.resources import WELL_KNOWN, WITH_HEADERS, Found, Place, Resources, Target
from iamroles_agent.serving import gate
from iamroles_agent.serving.gate import Gate
from iamroles_agent.spop import actions, messages
from iamroles_conformance.selftest.mutants import edits as edit
from iamroles_conformance.selftest.mutants.override import after, around, rescue, setting
from iamroles_conformance.selftest.registry import Override, both, mutant

_OPTIONAL = ("scopes_supported", "bearer_methods_supported")


class _All(frozenset[str]):
    """Holds every text."""

    __slots__ = ()
    __contains__ = lambda *_: True  # noqa: E731


def _targets(edit_: Callable[[Any], dict[str, Any]]) -> Override:
    """Compile resources with other fields."""

    def change(self: Any, _whole: Any) -> None:
        for host, here in self._hosts.items():
            self._hosts[host] = [replace(one, **edit_(one)) for one in here]

    return after(Resources, "__init__")(change)


def _document(edit_: Callable[[dict[str, Any]], dict[str, Any]]) -> Override:
    return _targets(lambda one: {"document": json.dumps(edit_(json.loads(one.document)))})


def _answers(edit_: Callable[[Any, Any], Any]) -> Override:
    """Look for metadata and preflights of another request."""
    return around(Found, "answered")(lambda sound, self, asked: sound(self, edit_(self, asked)))


def _known(edit_: Callable[[Any, Any], Any]) -> Override:
    """Judge the headers of another request."""
    return around(Found, "call")(lambda sound, at, asked: sound(at, at.target and edit_(at.target, asked)))


def _headers(**changes: Callable[[Any], Any]) -> Override:
    """Read other headers of a call."""
    return _known(lambda _, asked: replace(asked, mcp=asked.mcp._replace(
        **{name: change(getattr(asked.mcp, name)) for name, change in changes.items()})))  # fmt: skip


def _says(edit_: Callable[..., dict[str, Any]]) -> Override:
    """Say other things of the resource; `edit_` gets the decision, the policy and the request."""

    @around(Policy, "named")
    def named(sound: Any, self: Any, target: Any, request: Any, decision: Any) -> Any:
        found = sound(self, target, request, decision)
        return replace(found, **edit_(found, self, request))

    return named


@around(Resources, "find")
def _below(sound: Any, self: Any, asked: Any) -> Any:
    """Take what follows the path of a document for that."""
    paths = sorted((one.metadata.removeprefix(one.place.origin) for one in self.targets), key=len)
    known = [path for path in (asked.path, *paths) if asked.path.startswith(path)][-1]
    return sound(self, asked)._replace(described=sound(self, replace(asked, path=known)).described)


def _of_known_page(_: Any, asked: Any) -> Any:
    return replace(asked, mcp=asked.mcp._replace(origin=None)) if asked.mcp.origin == "null" else asked


def _near_page(self: Any, asked: Any) -> Any:
    page, known = asked.mcp.origin or "-", self.target.origins if self.target else ()
    near = any(page.startswith(one) for one in known)
    return replace(asked, mcp=asked.mcp._replace(origin=None)) if near else asked


@around(Found, "answered")
def _pages_everywhere(sound: Any, self: Any, asked: Any) -> Any:
    found = sound(self, asked)
    if found is not None and found.document and asked.mcp.origin:
        raise Refusal(Reason.ORIGIN_REFUSED, "the document is read by a page")
    return found


@around(Found, "answered")
def _no_preflights(sound: Any, self: Any, asked: Any) -> Any:
    return found if (found := sound(self, asked)) and found.document else None


@around(Resources, "find")
def _by_port(sound: Any, self: Any, asked: Any) -> Any:
    found, port = sound(self, asked), asked.host.partition(":")[2]
    return found if found.target and port in found.target.place.ports else found._replace(target=None)


def _admits(when: Callable[[Any, Any], bool]) -> Override:
    """Let credentials in that are refused; `when` gets the reason and the identity."""
    return rescue(Found, "admit", Refusal)(lambda refused, _, who: when(refused.reason, who) or None)


def _old(self: Any, asked: Any) -> Any:
    """Take an older call, or a call without version, for a new one if its headers are sound."""
    mine = asked.mcp
    older = mine.version in self.versions or (mine.version is None and min(self.versions) < WITH_HEADERS)
    known = older and mine.method and mine.name and asked.method == "POST"
    return replace(asked, mcp=mine._replace(version=WITH_HEADERS)) if known else asked


def _names(edit_: Callable[[Any, Any], Any]) -> Override:
    """Read another `Mcp-Name`; `edit_` gets the sound reader and the text."""
    return around(resources, "_name")(edit_)


def _lenient(sound: Any, sent: Any) -> Any:
    try:
        return sound(sent)
    except Refusal:
        return sent


def _decoded(how: Callable[[bytes], str]) -> Override:
    def read(sound: Any, sent: Any) -> Any:
        encoded = sent and re.fullmatch(r"=\?base64\?(.*)\?=", sent)
        return how(b64decode(encoded[1] + "==")) if encoded else sound(sent)

    return _names(read)


def _fits(edit_: Callable[[Any, Any], Any]) -> Override:
    """Look for other entries of a call; `edit_` gets method and name."""
    return around(compiled, "call_names")(lambda _sound, method, name: frozenset(edit_(method, name)))


def _unknown(value: bool) -> Override:
    """Let rules about calls fit where no call is known, or not."""
    return around(Region, "has_entries")(
        lambda sound, self, actor, call, *, unknown: sound(self, actor, call, unknown=value)
    )


def _loads(*words: str) -> Override:
    """Take policies with faults whose message has these words."""
    return around(checks, "_check")(lambda sound, whole: (
        fault for fault in sound(whole) if not any(word in fault.message for word in words)))  # fmt: skip


_NAME = re.compile(rb"\x08mcp-name.*", re.DOTALL)


def _nameless(key: Any) -> Any:
    return key and _NAME.sub(b"", key)


_forgets_name = both(
    around(Gate, "recall")(lambda sound, self, key, context: sound(self, _nameless(key), context)),
    around(Gate, "judge")(
        lambda sound, self, check, context, key: sound(self, check, context, _nameless(key))
    ),
)
for _id, _kills, _title, _override in (
    ("metadata-aside", "MCP-AUD-001", "judges no request at a metadata path as the resource's",
     around(Resources, "find")(lambda sound, self, asked: sound(self, asked)._replace(
         **{"target": None} if asked.path.startswith(WELL_KNOWN) else {}))),
    ("near-metadata", "MCP-META-001", "serves a document below its path", _below),
    ("any-method", "MCP-META-001", "serves a document to every method", _answers(
        lambda _, asked: replace(asked, method="GET") if asked.path.startswith(WELL_KNOWN) else asked)),
    ("metadata-pages", "MCP-META-001", "refuses documents to pages elsewhere", _pages_everywhere),
    ("slash-behind", "MCP-META-001", "puts a slash behind the resource",
     _document(lambda said: said | {"resource": said["resource"] + "/"})),
    ("issuer-names", "MCP-META-001", "names issuers in place of their URLs",
     _document(lambda said: said | {"authorization_servers": ["corp"]})),
    ("one-document", "MCP-META-001", "gives all resources the first document", around(Target, "compile")(
        lambda sound, resource, whole, places: replace(sound(resource, whole, places),
        document=sound(whole.resources[0], whole, places).document))),
    ("empty-members", "MCP-META-001", "writes empty members",
     _document(lambda said: {"resource_name": "", "scopes_supported": []} | said)),
    ("offline", "MCP-META-001", "offers offline_access",
     _document(lambda said: said | {"scopes_supported": ["offline_access"]})),
    ("few-members", "MCP-META-002", "leaves out members that are optional",
     _document(lambda said: {name: said[name] for name in said if name not in _OPTIONAL})),
    ("no-dpop", "MCP-META-002", "says nothing of DPoP in the metadata", _document(
        lambda said: {name: said[name] for name in said if not name.startswith("dpop")})),
    ("host-metadata", "MCP-CHALLENGE-001", "makes the URL of the metadata of the request", _says(
        lambda found, _, asked: {"resource": f"https://{asked.host}{WELL_KNOWN}{asked.path}"}
        if found.resource else {})),
    ("metadata-everywhere", "MCP-CHALLENGE-001", "names metadata outside the resources",
     _says(lambda found, policy, _: {
         "resource": found.resource or "".join(one.metadata for one in policy.resources.targets[:1])})),
    ("dropped", "MCP-CHALLENGE-001", "drops the resource of an answer that is too long", setting(
        actions, "TAGS", ("resource", *actions.TAGS))),
    ("no-metadata", "MCP-CHALLENGE-002", "names no metadata in challenges",
     _says(lambda found, *_: {"resource": found.resource if found.allow else ""})),
    ("unnamed", "MCP-PASS-001", "names no resource to the proxy", _says(lambda *_: {"resource": ""})),
    ("any-scope", "MCP-SCOPE-001", "names a scope that opens something else",
     _says(lambda found, *_: {"scope": found.scope and "elsewhere"})),
    ("scope-beside-all", "MCP-SCOPE-001", "names a scope where none helps", _says(
        lambda found, *_: {"scope": "files"} if found.reason and found.resource else {})),
    ("no-scope", "MCP-SCOPE-002", "names no scope", _says(lambda *_: {"scope": ""})),
    ("widest", "MCP-SCOPE-002", "names the widest scope", around(Region, "width")(
        lambda sound, self, call: tuple(-part for part in sound(self, call)))),
    ("any-audience", "MCP-AUD-001", "takes tokens for others",
     _admits(lambda reason, _: reason is Reason.AUDIENCE_MISMATCH)),
    ("any-issuer", "MCP-AUD-001", "takes tokens of every issuer",
     _admits(lambda reason, _: reason is Reason.ISSUER_UNTRUSTED)),
    ("sts-opens", "MCP-AUD-001", "lets callers of STS in", _admits(lambda _, who: who.dated_by_caller)),
    ("by-letters", "MCP-AUD-001", "takes a path for below another by its letters", around(Place, "holds")(
        lambda _sound, self, path: self.path == "/" or path.startswith(self.path))),
    ("shortest", "MCP-AUD-001", "takes the resource with the shortest path", around(Resources, "find")(
        lambda sound, self, asked: (found := sound(self, asked))._replace(target=found.target and min(
            (one for one in self.targets if one.place.host == found.target.place.host
             and one.place.holds(asked.path)), key=lambda one: len(one.place.path), default=found.target)))),
    ("by-port", "MCP-AUD-001", "lets another port lead past a resource", _by_port),
    ("any-page", "MCP-ORIGIN-001", "serves pages of every origin", _targets(lambda _: {"origins": _All()})),
    ("null-page", "MCP-ORIGIN-001", "serves pages without an origin", _answers(_of_known_page)),
    ("near-page", "MCP-ORIGIN-001", "compares the beginnings of origins", _answers(_near_page)),
    ("no-preflight", "MCP-PREFLIGHT-001", "wants a credential of preflights", _no_preflights),
    ("no-version", "MCP-HEADER-001", "takes a missing version for the newest",
     _headers(version=lambda said: said or WITH_HEADERS)),
    ("any-version", "MCP-HEADER-001", "takes any version for the newest",
     _headers(version=lambda _: WITH_HEADERS)),
    ("no-method", "MCP-HEADER-001", "takes a missing method for initialize",
     _headers(method=lambda said: said or "initialize")),
    ("no-name", "MCP-HEADER-001", "judges calls without their names", _names(_lenient)),
    ("by-get", "MCP-HEADER-001", "judges every method of HTTP alike",
     _known(lambda _, asked: replace(asked, method="POST"))),
    ("any-length", "MCP-HEADER-001", "takes names of any length",
     Override(lambda: messages.LIMITS.update({"mcp-name": 1 << 20}))),
    ("undecoded", "MCP-NAME-001", "compares names as they are sent",
     _names(lambda sound, sent: sent or sound(sent))),
    ("lenient-base64", "MCP-NAME-001", "drops what is not base64", _decoded(lambda raw: raw.decode())),
    ("latin", "MCP-NAME-001", "decodes names as Latin-1", _decoded(lambda raw: raw.decode("latin-1"))),
    ("any-octets", "MCP-NAME-001", "takes plain names of any octets", setting(
        resources, "_PLAIN", re.compile(r"[^=].*", re.DOTALL))),
    ("any-call", "MCP-GRANT-001", "does not look at the calls of grants",
     edit.regions(edit.is_grant, mcp=None)),
    ("any-tool", "MCP-GRANT-001 MCP-DENY-001", "compares methods alone",
     around(Region, "from_rule")(lambda sound, rule: (found := sound(rule)) and replace(
        found, mcp=found.mcp and frozenset((method, "") for method, _ in found.mcp)))),
    ("no-wildcard", "MCP-GRANT-001 MCP-DENY-001", "takes an empty entry for no call",
     _fits(lambda method, name: {("", name), (method, ""), (method, name)} - {("", "")})),
    ("any-case", "MCP-GRANT-001 MCP-DENY-001", "compares names without case", _fits(
        lambda method, name: {
            ("", ""), (method.lower(), ""), ("", name.lower()), (method.lower(), name.lower())})),
    ("every-name", "MCP-GRANT-001", "looks at the names of all methods", both(
        setting(regions, "NAMED_CALLS", _All()), around(Found, "call")(lambda sound, self, asked: (
            found := sound(self, asked)) and (found[0], found[1] or asked.mcp.name or "")))),
    ("unknown-opens", "MCP-GRANT-001", "opens to what it does not know", _unknown(True)),
    ("unknown-passes", "MCP-DENY-001 MCP-OLD-001", "closes to known calls alone", _unknown(False)),
    ("denies-all", "MCP-DENY-001", "closes to all calls", edit.regions(edit.is_deny, mcp=None)),
    ("believes-old", "MCP-OLD-001", "believes the headers of older versions", _known(_old)),
    ("loads-any", "MCP-LOAD-001", "takes rules before servers that compare nothing",
     _loads("is not known to compare")),
    ("loads-outside", "MCP-LOAD-001", "takes rules outside the resources", _loads("at or below that")),
    ("loads-any-host", "MCP-LOAD-001", "takes grants of a resource at any host", _loads("with any `Host`")),
    ("loads-offline", "MCP-LOAD-001", "takes offline_access for a scope", _loads("asks for a refresh token")),
    ("loads-odd-names", "MCP-LOAD-001", "takes names of methods without any", _loads("have no name")),
    ("loads-foreign", "MCP-LOAD-001", "takes resources of issuers without their audience",
     _loads("do not hold", "is an `aud` of no")),
    ("loads-http", "MCP-LOAD-001", "takes resources over http", _loads("is not https")),
    ("forgets-name", "MCP-MEMORY-001", "remembers answers without the name", _forgets_name),
    ("ticket-without", "MCP-CUT-001", "keeps no headers with a stream", around(gate, "ticket")(
        lambda sound, name, who, asked, found: sound(name, who, replace(asked, mcp=NO_HEADERS), found))),
    ("keeps-pages", "MCP-CUT-001", "ends no stream because of its page", around(judge, "_barred")(
        lambda *_: None)),
    # the gate's configuration
    ("as-text", "MCP-META-001", "sends documents as text",
     edit.replaced("content-type application/json", "content-type text/plain")),
    ("no-cors", "MCP-META-002", "hides documents from browsers",
     edit.replaced(' hdr Access-Control-Allow-Origin "*"', "")),
    ("unexposed", "MCP-PREFLIGHT-001", "hides challenges from browsers",
     edit.without('Access-Control-Expose-Headers "WWW-Authenticate, DPoP-Nonce" if iam_own iam_origin')),
    ("host-challenge", "MCP-CHALLENGE-001", "makes the URL in challenges of Host", edit.replaced(
        '=\\"%[var(txn.iam.resource)]', '=\\"https://%[var(txn.iam_host)]/.well-known/oauth-protected-resource')),
    ("any-text", "MCP-CHALLENGE-001", "quotes whatever the agent says", edit.replaced(" !iam_scope_odd", "")),
    ("repeated", "MCP-HEADER-001", "takes two names",
     edit.without("acl iam_mcp_repeated req.fhdr_cnt(mcp-name)")),
    ("query-token", "MCP-PASS-001", "lets tokens in queries through",
     edit.replaced("iam_query_token iam_note_query", "iam_query_token { always_false }")),
    ("query-plain", "MCP-PASS-001", "finds tokens in queries by their plain name alone",
     edit.replaced("(a|%[46]1)", "a")),
    ("their-challenge", "MCP-PASS-001", "passes servers' challenges on",
     edit.without("http-response del-header WWW-Authenticate if iam_resource")),
    ("no-challenge", "MCP-PASS-001", "leaves servers' 401 without a challenge",
     edit.without("if iam_resource { status 401 }")),
    ("no-params", "MCP-PASS-002", "strips headers of MCP that it does not know", edit.replaced(
        "http-request del-header Authorization\n",
        "http-request del-header Authorization\n    http-request del-header ^mcp-param- -m reg\n")),
):  # fmt: skip
    mutant(f"mcp.{_id}", _kills, _title)(_override)
