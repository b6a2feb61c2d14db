"""The questions of data/derived/actors.toml, over SPOP and through HAProxy.

All tokens of a group have the same subject, session and `jti`: an agent that leaves the actor out of its
memory answers a row with the answer to the one before it, forwards or backwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from iamroles_scenarios.checks.derived.world import HOST, iam_check
from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.declarations.scenario import Expectation
from iamroles_scenarios.declarations.tables import filled, table
from iamroles_scenarios.engine.answers import REASONS, Expected, expected, read
from iamroles_scenarios.engine.bench import Bench, SpopQuestion, bench, refused
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.jose.proof import combined
from iamroles_scenarios.wire.client import Connection, question
from iamroles_scenarios.wire.frames import HELLO, Frame, read_actions

POLICY = "delegation"
FEATURES = {"actor"}
GROUPS: Mapping[str, Mapping[str, Any]] = table("actors")["groups"]
_ISSUERS = ("corp", "partner", "cloud", "scoped", "thrice")
_USUAL = {"issuer": "corp", "shape": "generic", "roles": ["kiosk"], "typ": "JWT"}
_CHAINS = (8, 9, 30)
_WITHIN = 10.0
"""Seconds, times the scale, for a connection."""
_ACTOR = ("x-iam-actor", "x-iam-actor-issuer")


def chain(length: int) -> dict[str, Any]:
    """Return an `act` of some actors, of which `bot` is the outermost."""
    names = [f"svc{number}" for number in range(length - 1)]
    found: dict[str, Any] = {}
    for name in [*names, "bot"]:
        found = {"sub": name} | ({"act": found} if found else {})
    return found


@dataclass(frozen=True, slots=True)
class ActorRow:
    """A question of a group, with its token and what must be seen."""

    what: str
    said: Mapping[str, Any]
    token: str
    reasons: frozenset[str]
    allow: frozenset[bool]

    @property
    def expected(self) -> Expected:
        """Return what the agent answers; `answers` holds refusals to name no actor."""
        said, found = self.said, dict[str, object](allow=self.allow, reason=self.reasons)
        if len(self.allow) == 1:  # else an allow that is wrong would not count as a false one
            [found["allow"]] = self.allow
        if True in self.allow:
            for name, key in (("actor", "actor"), ("actor_issuer", "iss")):
                found[name] = {said.get(key, "")} | ({""} if False in self.allow else set())
        if self.allow == {True}:
            found |= {name: said[name] for name in ("rule", "principal") if name in said}
        if self.reasons == {"denied_by_rule"} and "rule" in said:
            found["rule"] = said["rule"]
        return found

    @property
    def seen(self) -> Expectation:
        """Return what client and server see of a row that has one answer."""
        if self.allow == {True}:
            tags = zip(_ACTOR, (self.said.get("actor"), self.said.get("iss")), strict=True)
            shown = {name: [value] for name, value in tags if value}
            absent = [*({*_ACTOR} - shown.keys()), "txn-token"]
            more = {name: self.said[name] for name in ("rule", "principal") if name in self.said}
            return Expectation(allow=True, status=200, headers=shown, absent=absent, **more)
        statuses = sorted({REASONS[reason][0] for reason in self.reasons})
        return refused(*sorted(self.reasons), status=statuses)


def rows(here: Bench, group: Mapping[str, Any]) -> Iterator[ActorRow]:
    """Mint the tokens of a group, the same for the same recipe."""
    tokens: dict[str, str] = {}
    markers: dict[str, Any] = {name: here.issuer(name).url for name in _ISSUERS}
    markers |= {f"chain {length}": chain(length) for length in _CHAINS}
    for what, own in group["rows"].items():
        said = filled(combined(group["usual"], own), markers)
        claims = {"sub": "ann", "sid": "s", "jti": "one"} | said.get("claims", {})
        claims |= {"act": said["act"]} if "act" in said else {}
        recipe = {name: said.get(name, usual) for name, usual in _USUAL.items()} | {"claims": claims}
        if (name := repr(recipe)) not in tokens:
            tokens[name] = here.token(key="ES256", **recipe)
        token = tokens[name]
        words = set(said["answer"].split(" or "))
        reasons, allow = words - {"allow"}, {word == "allow" for word in words}
        reasons |= {""} if True in allow else set()
        yield ActorRow(what, filled(said, {"token": token}), token, frozenset(reasons), frozenset(allow))


@contextmanager
def delegating(target: Target) -> Iterator[Bench]:
    """Yield a bench that asks lists of questions, in a world that has the keys of all issuers."""
    with bench(target, POLICY, flow=POLICY) as here, here.asking():
        tokens = [here.token(name, key="ES256", roles=["kiosk"]) for name in _ISSUERS]
        here.wait_for_keys([SpopQuestion("keys", iam_check(token, path="/open"), {}) for token in tokens])
        yield here


for _name, _group in GROUPS.items():

    @check(f"actor.{_name}", *_group["requirements"], features=FEATURES, title=_group["title"])
    def _by_spop(target: Target, group: Mapping[str, Any] = _group) -> str:
        """Each row of data/derived/actors.toml is asked in order, and backwards."""
        with delegating(target) as here:
            asked = []
            for row in rows(here, group):
                arguments = {"path": row.said["path"].partition("?")[0], "role": row.said.get("role")}
                token = None if row.said.get("bare") else row.token
                asked.append(SpopQuestion(row.what, iam_check(token, **arguments), row.expected))
            here.ask_all(asked, window=1)
            return f"{here.asked} questions"

    @check(
        f"actor.proxy.{_name}", *_group["requirements"], lane="gate", features=FEATURES, title=_group["title"]
    )
    def _by_proxy(target: Target, group: Mapping[str, Any] = _group) -> str:
        """Each row of data/derived/actors.toml that has one answer goes through HAProxy."""
        with delegating(target) as here:
            played = [row for row in rows(here, group) if len(row.allow) == 1]
            for row in played:
                how = {name: row.said[name] for name in ("path", "role", "headers") if name in row.said}
                token = "" if row.said.get("bare") else row.token
                here.expect(row.what, token, row.seen, host=HOST, connection="rows", **how)
            return f"{len(played)} requests"


@check("actor.sts", "ACTOR-AWS-001", features={*FEATURES, "sts"})
def sts(target: Target) -> str:
    """A pre-signed GetCallerIdentity has no actor, neither for grants nor for denies."""
    with delegating(target) as here:
        credential = here.credential(here.session("kiosk"))
        asked = [
            SpopQuestion(path, iam_check(credential, path=path), {**expected(answer), "actor": ""})
            for path, answer in (("/open", "allow"), ("/any", "no_grant"), ("/shut/people", "allow"))
        ]
        here.ask_all(asked)
        return f"{here.asked} questions"


def framed(here: Bench, asked: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, object]]]:
    """Ask in a frame that is long enough, and in shorter ones, the last as long as the question.

    Yields the size of each in bytes, and the answer.
    """
    address, frame = here.world.agent.spop_address, question(asked, {"request-id": "x"})

    async def ask(size: int) -> Frame:
        with closing(await Connection.open(address, within=here.seconds(_WITHIN))) as line:
            await line.hello({**HELLO, "max-frame-size": size})
            return await line.ask(frame)

    whole = asyncio.run(ask(16380))
    yield 16380, read(read_actions(whole))
    least, most = len(frame.body()), len(whole.body()) - 1
    for size in (most, most - 600, least):
        if size >= least:
            yield size, read(read_actions(asyncio.run(ask(size))))


@check("actor.frames", "ACTOR-TAG-001", features=FEATURES)
def frames(target: Target) -> None:
    """An answer that is too long for its frame leaves out no actor, or names no backend, or refuses.

    The issuer's policy makes the actor's name principal and session too, so that the answer is longer than
    the question.
    """
    with delegating(target) as here:
        name = "b" * 500
        token = here.token(
            "thrice", key="ES256", roles=["kiosk"], claims={"act": {"sub": name, "iss": "urn:x"}}
        )
        for size, seen in framed(here, iam_check(token, path="/open")):
            actor = seen.get("actor"), seen.get("actor_issuer")
            if actor != (name, "urn:x") and (size == 16380 or (seen.get("allow") and seen.get("backend"))):
                raise here.failed(
                    f"the answer in a frame of {size} bytes names another actor", received=f"{seen}"
                )
