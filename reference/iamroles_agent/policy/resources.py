"""MCP servers behind the gate: which request is for which, what MCP asks of it, and their metadata.

A body may say a method and a tool of its own, and no proxy reads every body that a server reads. So rules go
by the standard headers of revision 2026-07-28 alone, where the policy says that the server compares them with
the body. What is unsound in them is refused, because a server might read it otherwise. Of a request of an
older revision the call is *unknown*: no grant for certain calls opens it, and each deny closes it.
"""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from iamroles_agent.base import config
from iamroles_agent.base.identity import Decision, Identity, Request, resource_ground
from iamroles_agent.base.reasons import Reason, Refusal
from iamroles_agent.policy.paths import canonical, segments
from iamroles_agent.policy.regions import NAMED_CALLS, Region, canonical_host

WELL_KNOWN = "/.well-known/oauth-protected-resource"
LONGEST_DOCUMENT = 8000  # it must fit into a frame
METHOD = re.compile(r"[A-Za-z0-9_$/.-]+", re.ASCII)
WITH_HEADERS = "2026-07-28"
"""The first revision whose requests name method and tool in headers."""
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]+\]|[a-z0-9_-]+(?:\.[a-z0-9_-]+)*)(?::(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>(?:/[A-Za-z0-9._~!$&'()*+,=:@%-]+)*)",
    re.ASCII,
)
_ENCODED = re.compile(r"=\?base64\?(.*)\?=", re.DOTALL)
_PLAIN = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
LONGEST_NAME = 1024
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Place(NamedTuple):
    """Origin, host, ports and path of a resource."""

    origin: str
    host: str
    ports: tuple[str, ...]
    """As `Host` may have it; "" if it is left out."""
    path: str
    """Canonical, without `/` at its end; "/" for the whole host."""

    @classmethod
    def of(cls, url: str) -> Place:
        """Read the URL of a resource, or raise a ValueError that says why it is not canonical."""
        match = _URL.fullmatch(url)
        if match is None or len(url) > 512 or int(match["port"] or 0) > 65535:
            raise ValueError("is not an https URL in lower case, without user, query and slash at its end")
        if match["port"] == (usual := "443" if match["scheme"] == "https" else "80"):
            raise ValueError("has the default port, which clients leave out")
        path = match["path"] or "/"
        try:
            if canonical(path) != path:
                raise ValueError("has a path that is encoded where it need not be")
        except Refusal as refusal:
            raise ValueError(f"could never be asked for: {refusal.detail}") from None
        end = len(url) - len(match["path"])
        return cls(url[:end], match["host"], (match["port"],) if match["port"] else ("", usual), path)

    @property
    def region(self) -> Region:
        return Region(None, self.path, exact=False, hosts=frozenset({self.host}), sources=None)

    def holds(self, path: str) -> bool:
        """Return whether a canonical path is the resource's, or below it."""
        return self.path in (path, "/") or path.startswith(self.path + "/")

    def concerns(self, region: Region, places: Iterable[Place]) -> bool:
        """Return whether a region holds a request for the resource here, and not for another one below it."""
        if not region.meets(self.region):
            return False
        below = (other for other in places if other.host == self.host and len(other.path) > len(self.path))
        return not self.holds(region.path) or not any(other.holds(region.path) for other in below)


@dataclass(frozen=True, slots=True)
class Target:
    """A resource, compiled."""

    place: Place
    metadata: str
    """URL of the metadata document."""
    document: str
    issuers: frozenset[str]
    """Names of the issuers whose tokens open it."""
    ground: str
    """Among the grounds of each identity that may open it."""
    origins: frozenset[str]
    versions: frozenset[str]
    scopes: tuple[str, ...]
    """Scope values of which one may open a request; empty if no issuer has a `scope_claim`."""

    @classmethod
    def compile(cls, resource: config.Resource, whole: config.Config, places: list[Place]) -> Target:
        """Compile a resource of a checked configuration."""
        place, url = Place.of(resource.resource), resource.resource
        issuers = issuers_of(resource, whole.issuers)
        values = sorted({one.name for one in whole.scopes if place.concerns(Region.from_rule(one), places)})
        bound = any(issuer.bound != "refused" for issuer in issuers)
        document = {
            "resource": url,
            "authorization_servers": [one.issuer for one in issuers if _is_server(one)],
            "scopes_supported": values,
            "bearer_methods_supported": ["header"],
            "dpop_signing_alg_values_supported": bound and whole.dpop and whole.dpop.algorithms,
            # DPoP is not *required*: a token that is bound to a certificate alone passes too.
            "tls_client_certificate_bound_access_tokens": bound,
        }
        return cls(
            place=place,
            metadata=place.origin + WELL_KNOWN + url.removeprefix(place.origin),
            document=json.dumps({k: v for k, v in document.items() if v}, separators=(",", ":")),
            issuers=frozenset(issuer.name for issuer in issuers),
            ground=resource_ground(url),
            origins=frozenset((place.origin, *resource.origins)),
            versions=frozenset(resource.versions),
            scopes=tuple(values) if any(issuer.scope_claim is not None for issuer in issuers) else (),
        )


def _is_server(issuer: config.Issuer) -> bool:
    """Return whether a client can read the issuer's metadata: RFC 8414 section 2 names the form."""
    scheme = "https?" if issuer.insecure_http else "https"
    return re.fullmatch(f"{scheme}://[^?#]+", issuer.issuer) is not None


def _invalid(why: str) -> Refusal:
    return Refusal(Reason.MCP_INVALID, why)


def _name(sent: str | None) -> str:
    """Read an `Mcp-Name`."""
    if not sent:
        raise _invalid("Mcp-Name is missing")
    if (encoded := _ENCODED.fullmatch(sent)) is None:
        if not _PLAIN.fullmatch(sent):
            raise _invalid("Mcp-Name has a byte that it must encode")
        return sent
    try:
        raw = b64decode(encoded[1], validate=True)
        name = raw.decode()
        if b64encode(raw).decode() == encoded[1] and name and not CONTROL.search(name):
            return name
    except ValueError:
        pass
    raise _invalid("Mcp-Name is not base64 of a text, or not the only one")


def issuers_of(resource: config.Resource, issuers: Iterable[config.Issuer]) -> list[config.Issuer]:
    """Return the issuers whose tokens open a resource, in the policy's order."""
    named = [one for one in issuers if one.name in resource.issuers or not resource.issuers]
    return [issuer for issuer in named if resource.resource in issuer.audiences]


class Found(NamedTuple):
    """The resource that a request is for, if any. Its methods raise a `Refusal` to refuse."""

    target: Target | None = None
    described: Target | None = None  # the resource whose metadata it asks for

    def answered(self, request: Request) -> Decision | None:
        """Judge `Origin`; return the answer to a request for metadata, and to a preflight."""
        origin, preflight = request.mcp.origin, request.method == "OPTIONS" and bool(request.mcp.preflight)
        if self.described is not None and request.method in ("GET", "HEAD"):
            return Decision(allow=False, answer=200, document=self.described.document)
        if self.described is not None and preflight and origin:
            return Decision(allow=False, answer=204)
        if origin is None or (target := self.target) is None:
            return None
        if origin not in target.origins:
            raise Refusal(Reason.ORIGIN_REFUSED, "the policy does not list this Origin for the resource")
        answer = Decision(allow=False, answer=204, resource=target.metadata, origin=origin)
        return answer if preflight else None

    def admit(self, identity: Identity) -> None:
        """Refuse a credential that is not for the resource."""
        target = self.target
        if target is None or (identity.issuer in target.issuers and target.ground in identity.grounds):
            return
        if identity.issuer in target.issuers or identity.dated_by_caller:  # by STS
            raise Refusal(Reason.AUDIENCE_MISMATCH, "the credential is not for the resource")
        raise Refusal(Reason.ISSUER_UNTRUSTED, "the resource does not trust the credential's issuer")

    def call(self, request: Request) -> tuple[str, str] | None:
        """Return method and name of a call, "" without a name; None if they are not known."""
        if (target := self.target) is None:
            return None
        said = request.mcp
        absent = said.version is None and min(target.versions) < WITH_HEADERS
        if said.version not in target.versions and not absent:
            raise _invalid("MCP-Protocol-Version is missing, or the policy does not list it")
        if said.version is None or said.version < WITH_HEADERS:
            return None
        if request.method != "POST":
            raise _invalid("each call of this revision is a POST")
        if said.method is None or not METHOD.fullmatch(said.method):
            raise _invalid("Mcp-Method is missing or not the name of a method")
        return said.method, _name(said.name) if said.method in NAMED_CALLS else ""


class Resources:
    """The resources of a checked configuration, by their hosts."""

    def __init__(self, whole: config.Config) -> None:
        places = [Place.of(resource.resource) for resource in whole.resources]
        self.targets = [Target.compile(resource, whole, places) for resource in whole.resources]
        self._hosts: dict[str, list[Target]] = {}
        for target in sorted(self.targets, key=lambda one: one.metadata):
            self._hosts.setdefault(target.place.host, []).append(target)

    def find(self, request: Request) -> Found:
        """Return what a request is for; the port, which the client chooses, leads past no resource."""
        if here := self._hosts and self._hosts.get(canonical_host(request.host)):
            port = request.host.rpartition("]")[2].partition(":")[2]
            near = sorted(here, key=lambda one: (-len(one.place.path), port not in one.place.ports))
            with suppress(Refusal):  # a request for an ambiguous path is for nothing
                path = "/" + "/".join(segments(canonical(request.path)))
                return Found(
                    next((one for one in near if one.place.holds(path)), None),
                    next((one for one in near if one.metadata == one.place.origin + path), None),
                )
        return Found()
