"""MCP servers: policies that do not load, reloads, streams, STS, servers' own challenges, and odd agents."""

from __future__ import annotations

import copy
import json
import math
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.base.polling import polls
from iamroles_scenarios.checks.actor.rows import framed
from iamroles_scenarios.checks.derived.world import edited, iam_check
from iamroles_scenarios.checks.live import renewing
from iamroles_scenarios.checks.live.fixture import SOCKET, live_bench
from iamroles_scenarios.checks.live.stream import Stream, StreamShape
from iamroles_scenarios.checks.mcp import rows
from iamroles_scenarios.checks.mcp.rows import CALL, FEATURES, FIELDS, FILES, exchange, metadata, serving
from iamroles_scenarios.checks.proxy.misbehaving import actions
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.tables import filled
from iamroles_scenarios.engine.answers import expected, read
from iamroles_scenarios.engine.bench import SpopQuestion, own_bench
from iamroles_scenarios.engine.players import challenges
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.encoding import b64url
from iamroles_scenarios.stage.impostor import Impostor
from iamroles_scenarios.wire.frames import Flags, Frame, FrameType, read_messages

_OWN = "https://mcp.example"
_BY_PROOF, _BY_CERTIFICATE = "dpop_bound_access_tokens_required", "tls_client_certificate_bound_access_tokens"
_CHANGES, _DPOP = {*FEATURES, "reload"}, {*FEATURES, "dpop"}
_PARTNER = {"name": "partner", "issuer": "{idp}/partner", "insecure_http": True, "algorithms": ["RS256"]}
_CROWDED, _NAMES = f"{_OWN}/crowd", [f"https://crowd.example/{n}/{'x' * 200}" for n in range(10, 35)]
_JWKS = {"jwks_uri": "{idp}/partner/jwks", "audiences": [_CROWDED]}
_CROWD = [{**_PARTNER, **_JWKS, "name": f"c{n}", "issuer": issuer} for n, issuer in enumerate(_NAMES)]
"""Issuers of a resource whose metadata have 6 kB."""


@check("mcp.policy.refused", "MCP-LOAD-001", features=_CHANGES)
def refused(target: Target) -> str:
    """A policy is refused whose resources, rules or scopes cannot mean what they say; sound ones load."""
    with serving(target, "mcp.policy.refused") as here:
        base = edited(here.loan.policy, {"drop": {"resources": ["whole"]}})
        bare = edited(base, {"set": {name: [] for name in rows.TABLE["loading"]}})
        here.must_reload(edited(bare, {"add": {"grants": [rows.TABLE["late"]["grants"]]}}), "no resources")
        count = 0
        for name, kinds in rows.TABLE["loading"].items():
            for kind, changes in kinds.items():
                for change in changes:
                    row, count = {**rows.TABLE["late"][name], **change}, count + 1
                    row = {key: value for key, value in row.items() if value != "{absent}"}
                    corp, *others = base["issuers"]
                    audiences = {*corp["audiences"], str(row.get("resource", "edge"))}
                    policy = edited(bare if kind == "nowhere" else base, {"add": {name: [row]}})
                    policy["issuers"] = [{**corp, "audiences": sorted(audiences)}, *others]
                    if kind == "sound":
                        here.must_reload(policy, f"{name}: {change}")
                    elif here.reload(policy).get("reloaded"):
                        here.note_wrong(f"a policy was taken, {name}: {change}")
        nobodys = {**rows.TABLE["late"]["resources"], "resource": f"{FILES}/late"}
        if here.reload(edited(base, {"add": {"resources": [nobodys]}})).get("reloaded"):
            here.note_wrong("a policy was taken whose resource is nobody's audience")
        return f"{count + 1} policies"


@check("mcp.policy.reload", "MCP-MEMORY-001", "MCP-META-001", features=_CHANGES)
def reloads(target: Target) -> str:
    """Each change of a resource or rule decides from its reload on, also for calls seen before.

    The last adds a resource whose metadata are long.
    """
    with serving(target, "mcp.policy.reload") as here:
        token, acting = (
            here.token(key="ES256", roles=["kiosk"], aud=["edge", FILES], claims=claims)
            for claims in ({}, {"act": {"sub": "bot"}})
        )
        changes = filled(rows.TABLE["asked"], {"acting": f"Bearer {acting}"})
        for row in rows.TABLE["reloads"]:
            if target.lacks(row.get("features", [])):
                continue
            here.must_reload(edited(here.loan.policy, row), row["what"])
            asked = [
                SpopQuestion(name, {**iam_check(token), **CALL, **changes[name]}, expected(answer))
                for name, answer in row["answers"].items()
            ]
            here.ask_all(asked, f"{row['what']}: ")
        added = {"issuers": _CROWD, "resources": [{"name": "crowd", "resource": _CROWDED}]}
        here.must_reload(edited(here.loan.policy, {"add": here.loan.own(added)}), "a crowd of issuers")
        path = metadata(_CROWDED).removeprefix(_OWN)
        question = SpopQuestion("metadata", {**iam_check(None), **CALL, "method": "GET", "path": path}, {})
        seen, servers = read(here.actions([question])[0]), None
        with suppress(ValueError, TypeError, LookupError):
            servers = sorted(json.loads(str(seen["document"]))["authorization_servers"])
        if servers != _NAMES:
            here.note_wrong("the metadata are cut, or lack issuers of the resource", question, seen)
        return f"{here.asked} questions"


@check("mcp.sts", "MCP-AUD-001", features={*FEATURES, "sts"})
def sts(target: Target) -> str:
    """A pre-signed GetCallerIdentity opens no resource."""
    with serving(target) as here:
        credential = here.credential(here.session("kiosk"))
        asked = [
            SpopQuestion(
                host, {**iam_check(credential), **CALL, "host": host, "path": "/files/open"}, expected(answer)
            )
            for host, answer in (("other.example", "allow"), ("mcp.example", "audience_mismatch"))
        ]
        here.ask_all(asked)
        return f"{here.asked} questions"


_BOUND: dict[str, Any] = {
    "dpop": {"origins": [_OWN], "replay": "none"},
    "issuers": [{"name": "corp", "bound": "accepted"}, {"name": "partner", "bound": "required"}],
    "resources": [{"name": "blunt", "issuers": ["twice"]}],
}


@check("mcp.proxy.dpop", "MCP-META-002", "MCP-CHALLENGE-002", lane="gate", features=_DPOP)
def dpop(target: Target) -> None:
    """Both challenges say where the metadata is where DPoP counts, and that says how tokens are bound."""
    certificate = not target.lacks(["certificate"])
    with serving(target, **_BOUND) as here:
        for resource, required in ((FILES, False), (f"{FILES}/deep", True), (f"{_OWN}/blunt", None)):
            path = resource.removeprefix(_OWN)
            found = challenges(exchange(here, "GET", path, [("Host", "mcp.example")]))
            named = {scheme: said.get("resource_metadata") for scheme, said in found.items()}
            if named != dict.fromkeys(("Bearer", "DPoP"), metadata(resource)):
                here.note_wrong(f"{path}: the challenges name {named}")
            answer = exchange(here, "GET", metadata(resource).removeprefix(_OWN), [("Host", "mcp.example")])
            said: dict[str, Any] = {}
            with suppress(ValueError, TypeError):
                said = dict(json.loads(answer.body))
            right = (["ES256"], required and not certificate, certificate)
            algs = said.get("dpop_signing_alg_values_supported")
            seen = algs, *(said.get(name, False) for name in (_BY_PROOF, _BY_CERTIFICATE))
            if not said or seen != (right if required is not None else (None, False, False)):
                here.note_wrong(f"{path}: its metadata say {said or answer.body[:80]!r}")


@check("mcp.audience.proof", "MCP-AUD-001", features=_DPOP)
def unproven(target: Target) -> None:
    """A token for another server is refused as such, and not for want of a proof (14.5)."""
    with serving(target, **_BOUND) as here:
        thumbprint: dict[str, Any] = {"cnf": {"jkt": b64url(bytes(32))}}
        for issuer, path, claims in (("corp", "/files/open", thumbprint), ("partner", "/files/deep", {})):
            token = here.token(issuer, key="ES256", roles=["kiosk"], aud="edge", claims=claims)
            what = f"{path}: a token for another server, without a proof"
            asked = {**iam_check(token), **CALL, "path": path}
            here.ask_all([SpopQuestion(what, asked, expected("audience_mismatch"))])


@check("mcp.frames", "MCP-CHALLENGE-001", features=FEATURES)
def frames(target: Target) -> None:
    """An answer that is too long for its frame names the resource, by which the proxy goes, or no backend."""
    with serving(target) as here:
        claims = {"sub": "a" * 512, "aud": f"{_OWN}/blunt"}
        token = here.token("twice", key="ES256", roles=["kiosk"], claims=claims, drop=["iat", "nbf", "jti"])
        asked = {**iam_check(token), **CALL, "path": "/blunt", "mcp-method": "ping", "mcp-name": None}
        for size, seen in framed(here, asked):
            named = seen.get("resource") == metadata(f"{_OWN}/blunt")
            if not named and (size == 16380 or (seen.get("allow") and seen.get("backend"))):
                raise here.failed(
                    f"the answer in a frame of {size} bytes names no resource", received=f"{seen}"
                )


_BACK = 15.0
"""Seconds, times the scale, within which HAProxy asks on a new connection."""
_EVIL = 'Bearer realm="evil", resource_metadata="https://evil.example/x"'


@check("mcp.proxy.servers", "MCP-PASS-001", lane="gate", features=FEATURES)
def servers(target: Target) -> None:
    """A server's own challenge reaches no client of a resource; on its 401 the gate's stands in its place."""
    with serving(target) as here:
        token = here.token(key="ES256", roles=["kiosk"], aud=["edge", FILES])
        for status in (200, 401, 403, 404, 503):
            head = f"HTTP/1.1 {status} X\r\nWWW-Authenticate: {_EVIL}\r\nwww-authenticate: Basic\r\n"
            raw = f"{head}Content-Length: 0\r\nConnection: close\r\n\r\n".encode()
            query = f"raw={urlsafe_b64encode(raw).decode().rstrip('=')}"
            fields = [("Host", "mcp.example"), ("Authorization", f"Bearer {token}"), ("Content-Length", "0")]
            fields += [(name, CALL[key]) for key, name in FIELDS.items() if CALL[key]]
            answer = exchange(here, "POST", f"/files/open?{query}", fields)
            found = challenges(answer)
            named = found.get("Bearer", {}).get("resource_metadata", metadata(FILES))
            own = {"Bearer"} if status == 401 else set()
            right = named == metadata(FILES) and "error" not in str(found) and set(found) == own
            if answer.status != status or not right:
                shown = answer.all("www-authenticate")
                here.note_wrong(f"a server's {status} became {answer.status} with {shown}")


@check("mcp.proxy.forged", "MCP-CHALLENGE-001", lane="gate", features={*FEATURES, "spop"})
def forged(target: Target) -> str:
    """Whatever a scripted agent names as scope, resource or origin, no text ends a challenge's quotes."""
    said = list(rows.TABLE["forged"].values())
    refusal = {"status": 401, "allow": False, "backend": "{gone}", "error": "invalid_token"}

    def answer(asked: Frame) -> tuple[bytes, bool]:
        path = next(str(value.value) for name, value in read_messages(asked)[-1].arguments if name == "path")
        own = actions({**refusal, **said[int(path.rpartition("/")[2])]})
        return Frame(FrameType.ACK, asked.stream_id, asked.frame_id, own, Flags.FIN).encode(), False

    with ExitStack() as stack:

        def between(host: str, agent: str) -> str:
            found.append(stack.enter_context(Impostor(host, agent, backend="orders-ro", answer=answer)))
            return found[0].address

        found = list[Impostor]()
        here = stack.enter_context(own_bench(target, rows.POLICY, flow=rows.POLICY, between=between))
        found[0].takes_over(None)
        wrong = []
        for _last in polls(here.seconds(_BACK)):
            if exchange(here, "GET", "/files/0", [("Host", "mcp.example")]).status != 503:
                break
        for number, what in enumerate(rows.TABLE["forged"]):
            seen = exchange(here, "GET", f"/files/{number}", [("Host", "mcp.example")])
            shown = challenges(seen)
            forged_ = seen.all("x-forged") or [text for text in map(str, seen.headers) if "X-Forged" in text]
            if forged_ or seen.status != 401 or shown.get("Bearer", {}).get("error") != "invalid_token":
                wrong.append(f"{what}: status {seen.status}, {seen.headers}")
        if wrong:
            raise here.failed("; ".join(wrong))
    return f"{len(said)} answers of a scripted agent"


@dataclass(frozen=True, slots=True)
class _Call(StreamShape):
    """A call whose answer is an event stream."""

    method: str = "subscriptions/listen"
    name: str = ""
    origin: str = ""

    def head(self, path: str, token: str) -> bytes:
        said = {
            "mcp-version": rows.NEW,
            "mcp-method": self.method,
            "mcp-name": self.name,
            "origin": self.origin,
        }
        lines = "".join(f"{FIELDS[key]}: {value}\r\n" for key, value in said.items() if value)
        plain = StreamShape.head(self, path, token).replace(b"GET ", b"POST ", 1)
        return plain.replace(b"Accept:", f"{lines}Content-Length: 0\r\nAccept:".encode())


@check("mcp.stream.policy", "MCP-CUT-001", lane="gate", features={"live", *_CHANGES})
def streams(target: Target) -> None:
    """A policy that no longer permits a stream's issuer, name, origin, method or version ends it alone."""
    own, page = "https://gate.example/live", "https://app.example"
    below = f"{own}/reader/below"
    tables: dict[str, Any] = {
        "issuers": [{"name": "corp", "audiences": ["edge", own, below]}, {**_PARTNER, "audiences": [own]}],
        "grants": [{"id": name, "hosts": ["gate.example"]} for name in ("L1", "L2")],
        "resources": [{"name": "live", "resource": own, "validates_headers": True, "origins": [page]}],
    }
    with live_bench(target, "mcp.stream.policy", own=True, **tables) as here:
        document: dict[str, Any] = copy.deepcopy(here.loan.policy)
        token = here.token(aud=own)
        shapes = [_Call("events", method="tools/call", name=name) for name in ("watch", "other")]
        shapes += [_Call("events", origin=origin) for origin in (page, "")]
        named, other, paged, plain = here.open_all(shapes, token)
        foreign = here.open(shapes[1], here.token("partner", aud=own))
        lower = here.open(shapes[1], here.token(aud=[own, below]), "/live/reader/below")
        document["resources"].append({**document["resources"][0], "name": "below", "resource": below})

        def change(table: str, row: Mapping[str, Any], going: Stream) -> None:
            document[table] = [{**(document.get(table) or [{}])[0], **row}, *document.get(table, [])[1:]]
            here.must_reload(document, f"{table}: {row}")
            here.must_end([going], f"another policy, {table}: {row}")

        entry = {"method": "tools/call", "name": "watch"}
        deny = {"id": "D1", "roles": ["*"], "path": "/live", "mcp": [entry]}
        change("resources", {"issuers": ["corp"]}, foreign)
        change("denies", deny, named)
        change("resources", {"origins": []}, paged)
        change("grants", {"mcp": [{"method": "tools/call"}]}, plain)
        here.must_last([other, lower], "other changes, as a new resource of its token's audience")
        change("resources", {"versions": ["2025-11-25"]}, other)


@check(
    "mcp.stream.renew", "MCP-CUT-001", "LIVE-RENEW-003", lane="gate", features={"live", "renew", *FEATURES}
)
def renew(target: Target) -> None:
    """A fresh credential that is not for the stream's resource does not prolong it."""
    path = f"{renewing.RENEWING}/own"
    own = f"https://gate.example{path}"
    tables: dict[str, Any] = {
        "issuers": [{"name": "corp", "audiences": ["edge", own]}],
        "grants": [{"id": name, "hosts": ["gate.example", "api.example.com"]} for name in ("W1", "W2")],
        "resources": [{"name": "own", "resource": own, "versions": ["2025-11-25"]}],
    }
    with live_bench(target, "mcp.stream.renew", renewing.WORLD, **tables) as here:
        end, both = here.end(), ["edge", own]
        opened = [
            here.open(SOCKET, renewing.token(here, sub, exp=end, aud=both), path) for sub in ("ann", "ben")
        ]
        for sub, audience in (("ann", "edge"), ("ben", both)):
            renewing.ask(here, opened, renewing.token(here, sub, aud=audience))
        here.must_expire(opened[:1])
        renewing.outlive(here, opened[1:], math.inf, "a fresh credential for its resource was seen")
