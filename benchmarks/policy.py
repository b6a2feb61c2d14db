"""Cost of a decision among many grants against among few; run by hand: `python -m benchmarks.policy`.

Issue 5 asks that a decision among 10,000 grants and 1,000 roles costs at most twice one among 10.
"""

import gc
import random
import statistics
import time
from ipaddress import ip_address

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import Identity, Request, RoleArn
from iamroles_agent.policy import Policy
from iamroles_tools.policy.diff import diff
from iamroles_tools.policy.lint import lint
from iamroles_tools.policy.matrix import matrix

_SAMPLE = 2000


def build(grants: int, roles: int) -> Config:
    """A policy in which each role has as many grants as any other, and each grant a path of its own."""
    return Config.model_validate(
        {
            "version": 1,
            "issuers": [{"name": "i", "issuer": "https://i", "audiences": ["a"], "algorithms": ["RS256"]}],
            "roles": [{"name": f"r{n}", "arn": f"arn:aws:iam::111111111111:role/r{n}"} for n in range(roles)],
            "backends": [{"name": f"b{n}"} for n in range(10)],
            "grants": [
                {
                    "id": f"g{n}",
                    "roles": [f"r{n % roles}"],
                    "methods": ["GET", "POST"],
                    "path": f"/service{n % 97}/resource{n}",
                    "hosts": ["*.example.com"] if n % 2 else [],
                    "backend": f"b{n % 10}",
                }
                for n in range(grants)
            ],
            "denies": [
                {"id": f"d{n}", "roles": ["*"], "methods": ["DELETE"], "path": f"/service{n}"}
                for n in range(min(grants, 90))
            ],
        }
    )


def shaped(shape: str) -> Config:
    """5,000 grants, 200 roles: over many paths, on six paths, or each grant to all roles; and a wide deny."""
    config = build(5_000, 200)
    everyone = [role.name for role in config.roles]
    update = {
        "spread": lambda n: {},
        "crowded": lambda n: {
            "path": f"/p{n % 6}",
            "backend": f"b{n % 6}",
            "sources": [f"10.{n % 200}.0.0/16"],
        },
        "everyone": lambda n: {"roles": everyone},
    }[shape]
    grants = [grant.model_copy(update=update(n)) for n, grant in enumerate(config.grants)]
    wide = config.denies[0].model_copy(update={"id": "a-wide-one", "path": "/", "methods": ["GET"]})
    return config.model_copy(update={"grants": grants, "denies": [wide, *config.denies]})


def questions(grants: int, roles: int) -> list[tuple[Identity, Request]]:
    """Allowed requests, spread over all grants."""
    rng = random.Random(7)
    asked = []
    for _ in range(_SAMPLE):
        n = rng.randrange(grants)
        arn = RoleArn("aws", "111111111111", f"r{n % roles}")
        who = Identity("i", "me", "s", (arn,), 2_000, 1_000)
        path = f"/service{n % 97}/resource{n}/item/42"
        asked.append((who, Request("GET", "api.example.com", path, ip_address("192.0.2.7"))))
    return asked


def cost(policy: Policy, asked: list[tuple[Identity, Request]]) -> float:
    """Best of several rounds, in microseconds a decision."""
    assert all(policy.decide(who, request).allow for who, request in asked)
    rounds = []
    gc.disable()
    for _ in range(15):
        before = time.process_time()
        for who, request in asked:
            policy.decide(who, request)
        rounds.append((time.process_time() - before) / len(asked) * 1e6)
    gc.enable()
    return min(rounds)


def main() -> None:
    small, large = build(10, 5), build(10_000, 1_000)
    few, many = Policy(small), Policy(large)
    pairs = [(cost(few, questions(10, 5)), cost(many, questions(10_000, 1_000))) for _ in range(3)]
    for one, two in pairs:
        print(f"10 grants {one:6.1f} us    10,000 grants, 1,000 roles {two:6.1f} us    ratio {two / one:.2f}")
    print(f"median ratio {statistics.median(two / one for one, two in pairs):.2f} (at most 2)")
    for shape in ("spread", "crowded", "everyone"):
        config = shaped(shape)
        fewer = config.model_copy(update={"denies": config.denies[1:]})
        for name, tool in (
            ("lint", lint),
            ("diff", lambda new, old=config: diff(old, new).digest),
            ("matrix", matrix),
        ):
            before = time.process_time()
            tool(fewer)
            seconds = time.process_time() - before
            print(f"{name:6} of 5,000 grants, 200 roles, {shape:8} {seconds:5.2f} s of CPU (at most 5)")


if __name__ == "__main__":
    main()
