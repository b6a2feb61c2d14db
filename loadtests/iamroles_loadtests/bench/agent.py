"""The agent beside its peers: straight by SPOP, and through HAProxy beside HAProxy's own check."""

from __future__ import annotations

import itertools
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from iamroles_loadtests.asking.gate_config import orders_policy
from iamroles_loadtests.asking.plan import Ask, Pools
from iamroles_loadtests.asking.questions import Asking, opened, role, straight
from iamroles_loadtests.asking.targets import QUIET, Target
from iamroles_loadtests.bench.rounds import Rounds, Shape, pin, ratio, take_turns
from iamroles_loadtests.measuring.generator import Generator, GeneratorError
from iamroles_scenarios.stage import AgentSpec, Stage, World, open_stage
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.traffic import Address, Case, Loop, Question, Right, SpopClient
from iamroles_scenarios.traffic.polling import NANO, now

NOOP = AgentSpec(
    name="no-op",
    version="",
    directory=Path(__file__).parent,
    command=("python", "-m", "iamroles_loadtests.bench.noop"),
    build="python",
)
OURS = "the agent"
CERTIFICATE, PROOF = "the agent, a token bound to a certificate", "the agent, a DPoP proof in each question"
_ORIGIN = "https://api.example.com"
PIPELINED, SINGLE = Shape("4 x 16", 4, 16), Shape("16 x 1", 16)
BUSY, CALM = Shape("64 connections", 64), Shape("1,000 a second", 16, rate=1000.0, once_share=0.05, longer=3)
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - for directories of our own
PROVEN = 400.0
"""Seconds that a DPoP proof passes."""
_RENDER = ("python", "-m", "iamroles_loadtests.bench.variants", "{world}", "{output}")
_SAID = Right(200, (b"backend=orders-ro",))
_ALLOWED = Right(200, (b"allow=true\n",))


class Bench:
    """A stage with contenders on it.

    Args:
        stage: open.
        scratch: where audit logs go; memory, where there is any.
    """

    def __init__(self, stage: Stage, scratch: str) -> None:
        self.stage = stage
        self._scratch = scratch
        self._worlds = ExitStack()
        issuer = stage.idp.issuer("corp")
        key = issuer.add_key("RS256")
        issuer.add_key("ES256", sign=False)
        self.asking = Asking(issuer.mint)
        self.token = self.asking.token("known", "reader")
        public = jwt.PyJWK(next(entry for entry in issuer.jwks() if entry["kid"] == key.kid)).key
        self.key = Path(scratch, "key.pem")
        self.key.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))

    def world(self, agent: AgentSpec, *changes: str, haproxy: bool = True, bound: str = "") -> World:
        """An agent under the policy `orders`, behind HAProxy with the variant's configuration."""
        document = policy()
        if bound:
            document["issuers"] = [issuer | {"bound": "accepted"} for issuer in document["issuers"]]
            document["dpop"] = {"origins": [_ORIGIN], "max_age": "5m", "leeway": "60s"}
        if agent.directory == reference_agent().directory:
            document["audit"] = {"path": f"{self._scratch}/audit-{len(changes)}-{haproxy}{bound}.jsonl"}
        if changes or haproxy:
            agent = replace(agent, haproxy={**agent.haproxy, "render": [*_RENDER, *changes]})
        world = self.stage.world(agent, document, settings=QUIET | {"IAM_THREADS": "1"}, haproxy=haproxy)
        return self._worlds.enter_context(world)

    def through(self, agent: AgentSpec, *changes: str, pool: str = "any") -> Target:
        """A contender behind HAProxy; its agent's time counts where it is asked."""
        world = self.world(agent, *changes)
        self.proxy = world.haproxy
        parts = {"haproxy": lambda: world.haproxy.host_pid, "agent": lambda: world.agent.host_pid}
        address = world.proxy.url.removeprefix("http://")
        return Target(address, {}, {}, steady=pool, parts=parts, world=world)

    def straight(self, agent: AgentSpec, pool: str = "straight") -> Target:
        world = self.world(agent, haproxy=False, bound=pool.removeprefix("straight"))
        parts = {"agent": lambda: world.agent.host_pid}
        address = world.agent.spop_address
        return Target(address, {}, {}, protocol="spop", steady=pool, parts=parts, world=world)

    def pools(self, new: int = 0) -> Pools:
        """Questions: `straight`; `known`, whose whole identity is judged; `any`, which must pass; `new`."""
        check = {"authorization": f"Bearer {self.token}", "host": "api.example.com", "path": "/orders/1"}
        known = opened("orders-ro", "known", role("reader"), "R1")
        payload = self.asking.request(self.token)
        others = (self.asking.request(self._another(f"new-{number}")) for number in range(new))
        return {
            "straight": [straight(check, "straight", _ALLOWED)],
            **{name: [straight(check | more, name, _ALLOWED)] for name, more in self._bound().items()},
            "known": [Ask(case="known", payload=payload, right=known)],
            "any": [Ask(case="any", payload=payload, right=_SAID)],
            "plain": [Ask(case="plain", payload=payload)],
            "new": [Ask(case="new", payload=one, right=_SAID) for one in others],
        }

    def _bound(self) -> dict[str, dict[str, Any]]:
        """Arguments by which a bound token passes; no proxy counts the proof, so it passes each time."""
        key = ec.generate_private_key(ec.SECP256R1())
        members = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
        jwk = {name: members[name] for name in ("crv", "kty", "x", "y")}
        jkt = _hash(json.dumps(jwk, separators=(",", ":")))
        tokens = [
            self.asking.token("known", "reader", claims={"cnf": {name: jkt}}) for name in ("x5t#S256", "jkt")
        ]
        claims: dict[str, Any] = {
            "jti": "bench",
            "htm": "GET",
            "htu": f"{_ORIGIN}/orders/1",
            "ath": _hash(tokens[1]),
        }
        claims |= {"iat": int(time.time()) + 50}
        proof = jwt.encode(claims, key, "ES256", headers={"typ": "dpop+jwt", "jwk": jwk})
        return {
            "certificate": {"authorization": f"Bearer {tokens[0]}", "certificate": jkt},
            "proof": {"authorization": f"DPoP {tokens[1]}", "proof": proof, "proof-count": 1},
        }

    def crowd(self, address: str, count: int) -> None:
        """Let the agent at an address verify and remember this number of identities.

        Raises:
            GeneratorError: an answer was wrong or missing.
        """
        cases = dict[str, Case]()

        def asked() -> Iterator[Question]:
            about = {"host": "api.example.com", "path": "/orders/1"}
            for number in itertools.count():
                token = self._another(f"crowd-{number}") if number < count else self.token
                check = about | {"authorization": f"Bearer {token}"}
                yield straight(check, "crowd", _ALLOWED).question(cases)

        loop = Loop(asked(), patience=60.0)
        loop.open([SpopClient(loop, Address.of(address), in_flight=16) for _ in range(4)])
        loop.start()
        while loop.tally.answers < count and not loop.tally.faults:
            loop.run(now() + NANO // 10)
        loop.finish()
        if loop.tally.wrong or loop.tally.faults:
            raise GeneratorError(f"{OURS} did not take {count} identities: {cases['crowd'].examples[:1]}")

    def _another(self, name: str) -> str:
        return self.asking.token(name, "reader", key="ES256")

    def close(self) -> None:
        self._worlds.close()


def _hash(text: str) -> str:
    return urlsafe_b64encode(sha256(text.encode()).digest()).rstrip(b"=").decode()


def policy() -> dict[str, Any]:
    """The policy of all benches."""
    return orders_policy() | {"keys": {"refresh": "1s", "cooldown": "1s"}}


@contextmanager
def opened_bench(kind: str, haproxy: str | None) -> Iterator[Bench]:
    """A stage of this kind with nothing on it yet."""
    with (
        open_stage(kind, haproxy=haproxy) as stage,
        TemporaryDirectory(prefix="iamroles-bench-", dir=MEMORY) as scratch,
    ):
        bench = Bench(stage, scratch)
        try:
            yield bench
        finally:
            bench.close()


@contextmanager
def generator(bench: Bench, new: int = 0) -> Iterator[Generator]:
    """The load generator, on the last core, with this number of new tokens."""
    with Generator(bench.pools(new)) as started:
        pin(started.pid, first=False)
        yield started


def measure(
    bench: Bench,
    peers: Sequence[AgentSpec],
    rounds: int,
    seconds: float,
    say: Callable[[str], None],
    *,
    identities: int,
) -> dict[str, Rounds]:
    """All shapes; by the shape's name, what each contender did.

    In the last one the agent holds this number of identities.
    """
    agents = [(OURS, reference_agent()), ("no-op", NOOP), *((peer.name, peer) for peer in peers)]
    found = {}
    say("starting the agents")
    straights = {name: bench.straight(agent) for name, agent in agents}
    for name, pool in ((CERTIFICATE, "certificate"), (PROOF, "proof")):
        straights[name] = bench.straight(reference_agent(), pool)
    proxied = {
        "plain": bench.through(NOOP, "--plain", pool="plain"),
        "plain with our record": bench.through(NOOP, "--plain", "--recorded", pool="plain"),
        "jwt_verify": bench.through(NOOP, "--native", str(bench.key)),
        "rules alone": bench.through(NOOP, "--unasked"),
        **{name: bench.through(agent, pool="known") for name, agent in agents[:2]},
    }
    ours = proxied[OURS].world
    assert ours is not None  # noqa: S101 - `through` started it
    # Of two contenders, with their warm-up, and a fifth more.
    new = round(CALM.rate * CALM.once_share * CALM.longer * seconds * rounds * 2 * 1.25 * 1.2) + 100
    with generator(bench, new) as started:
        for shape in (PIPELINED, SINGLE):
            found[shape.name] = take_turns(started, straights, shape, rounds=rounds, seconds=seconds, say=say)
        found[BUSY.name] = take_turns(started, proxied, BUSY, rounds=rounds, seconds=seconds, say=say)
        say(f"{OURS} takes {identities:,} identities")
        bench.crowd(ours.agent.spop_address, identities)
        found[CALM.name] = take_turns(started, proxied, CALM, rounds=rounds, seconds=seconds, say=say)
    return found


def wrong(found: dict[str, Rounds]) -> list[str]:
    """Say what went wrong; empty if every answer was right."""
    return [
        f"{shape}, {name}: {one['wrong']} wrong answers or faults, {'; '.join(one['examples'][:2])}"
        for shape, played in found.items()
        for name, rounds in played.items()
        for one in rounds
        if one["wrong"]
    ]


def targets(found: dict[str, Rounds]) -> list[tuple[str, str, dict[str, float]]]:
    """Ratios that the project has set itself: what, the target, and what was seen."""
    straight, busy, calm = found[PIPELINED.name], found[BUSY.name], found[CALM.name]
    seen = [
        (
            f"CPU a frame of {name} over the agent's, 4 x 16",
            "at least 14" if name == "spoe-forge" else "",
            ratio(straight, "agent", name, OURS),
        )
        for name in straight
        if name not in (OURS, "no-op")
    ]
    seen += [
        ("CPU a frame over the no-op agent's, 4 x 16", "", ratio(straight, "agent", OURS, "no-op")),
        ("agent's CPU over HAProxy's, a request", "at most 0.5", ratio(busy, "agent", OURS, OURS, "haproxy")),
        ("throughput over jwt_verify RS256", "at least 2.5", ratio(busy, "rate", OURS, "jwt_verify")),
        ("throughput over the no-op agent's", "at least 0.95", ratio(busy, "rate", OURS, "no-op")),
        (
            "HAProxy's CPU, rules alone over plain",
            "at most 1.4",
            ratio(busy, "haproxy", "rules alone", "plain"),
        ),
        (
            "HAProxy's CPU, rules alone over plain with our record",
            "",
            ratio(busy, "haproxy", "rules alone", "plain with our record"),
        ),
        ("HAProxy's CPU, rules and question over plain", "at most 2", ratio(busy, "haproxy", OURS, "plain")),
        ("p99 at 1,000 a second over the no-op agent's", "at most 1.3", ratio(calm, "p99", OURS, "no-op")),
    ]
    return seen
