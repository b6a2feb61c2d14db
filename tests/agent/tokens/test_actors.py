"""Delegation: claim, rules, tags, signed identity, audit, revocation and streams."""

import asyncio
from contextlib import nullcontext
from ipaddress import ip_address

import jwt
import pytest
import spop_transcript
import tokens_support
from audit_support import records
from policies import deny, document, grant, text
from tokens_support import ACCOUNT, ISSUER, NOW, READER, ROLE, claims, mint

from iamroles_agent.base.config import Config
from iamroles_agent.base.errors import ConfigError
from iamroles_agent.base.identity import Actor, Decision, Request
from iamroles_agent.identity_header import KeyRing, Signer
from iamroles_agent.live.judge import EXPIRED, POLICY_CHANGED, judge, whose
from iamroles_agent.live.revocations import NONE, Revocation, Revocations
from iamroles_agent.live.ticket import Ticket
from iamroles_agent.policy import Policy, load_text
from iamroles_agent.spop import actions
from iamroles_agent.tokens.claims import AWS_CLAIMS

FOREIGN = "https://agents.example.net"
CORP = {"name": "corp", "issuer": ISSUER, "audiences": ["orders"], "algorithms": ["ES256"]}
ALL = grant("all", "reader", "GET", "/orders")
NESTED = {"sub": "a", "act": {"sub": "b", "iss": FOREIGN, "act": {"iss": 7, "act": {"sub": "c"}}}}


def policy(*rules, scopes=(), **issuer):
    tables = {"keys": {"refresh": "10d", "max_stale": "10d"}, "scopes": list(scopes)}
    return document(*rules, issuers=[CORP | issuer], roles=[READER], **tables)


class Bench(tokens_support.Bench):
    """A gate of a policy."""

    def __init__(self, *rules, audit="none", **issuer):
        super().__init__(policy(*rules, **issuer), audit)

    def ask(self, **changes):
        """The variables of the answer to a token with these claims."""
        return self.answer(authorization=f"Bearer {mint(claims(**changes))}", path="/orders/1")


def aws(**changes):
    nested = {"aws_account": ACCOUNT, "principal_id": ROLE, "subject_mode": "OriginIdentity"}
    return {"roles": ..., AWS_CLAIMS: nested, "scope": "orders"} | changes


@pytest.fixture(scope="module")
def plain():
    return Bench(ALL)


@pytest.mark.parametrize(
    "act",
    [
        *("agent", ["agent"], 7, True, None, {}, {"iss": FOREIGN}, {"sub": None}, {"sub": 7}, {"sub": ""}),
        *({"sub": ["a"]}, {"sub": " a"}, {"sub": "a\n"}, {"sub": "a" * 513}, {"sub": {"sub": "a"}}),
        *({"sub": "a", "iss": iss} for iss in (None, "", [FOREIGN], "x\r\ny")),
    ],
    ids=repr,
)
def test_a_malformed_actor_refuses_the_token_for_every_policy(plain, act):
    assert plain.reason(act=act) == "claim_invalid"


@pytest.mark.parametrize(
    ("act", "tags"),
    [
        ({"sub": "a"}, ("a", None)),
        ({"sub": "a", "iss": ISSUER}, ("a", None)),
        ({"sub": "a", "iss": FOREIGN}, ("a", FOREIGN)),
        ({"sub": "alice"}, ("alice", None)),
        ({"sub": "a", "act": "nobody", "more": 1}, ("a", None)),
        (NESTED, ("a", None)),
        (..., (None, None)),
    ],
    ids=repr,
)
def test_the_outermost_actor_is_tagged(plain, act, tags):
    said = plain.ask(act=act, may_act={"sub": "m"})

    assert (said["principal"], said.get("actor"), said.get("actor_issuer")) == ("alice", *tags)


A, B = {"sub": "a"}, {"sub": "b"}
A_FOREIGN, B_FOREIGN = A | {"iss": FOREIGN}, B | {"iss": FOREIGN}
WHO = {
    "nobody": ...,
    "a": A | {"act": B_FOREIGN},
    "b": B | {"act": A},
    "a of foreign": A_FOREIGN,
    "b of foreign": B_FOREIGN,
}
ENTRIES = {
    "left out": ([], set(WHO)),
    "anybody": ([{}], set(WHO) - {"nobody"}),
    "a": ([{"sub": "a"}], {"a"}),
    "a by name": ([{"sub": "a", "issuer": ISSUER}], {"a"}),
    "own": ([{"issuer": ISSUER}], {"a", "b"}),
    "foreign": ([{"issuer": FOREIGN}], {"a of foreign", "b of foreign"}),
    "a of foreign": ([{"sub": "a", "issuer": FOREIGN}], {"a of foreign"}),
    "two": ([{"sub": "b"}, {"sub": "a", "issuer": FOREIGN}], {"b", "a of foreign"}),
    "other case": ([{"sub": "A"}, {"sub": "a", "issuer": FOREIGN + "/"}], set()),
}


@pytest.mark.parametrize(("entries", "fitting"), ENTRIES.values(), ids=ENTRIES)
def test_a_grant_opens_to_its_actors_and_a_deny_closes_to_them(entries, fitting):
    granted = Bench(ALL | {"actors": entries})
    denied = Bench(ALL, deny("no", "*", "/orders", actors=entries))

    for name, act in WHO.items():
        assert granted.reason(act=act) == ("allowed" if name in fitting else "no_grant"), name
        assert denied.reason(act=act) == ("denied_by_rule" if name in fitting else "allowed"), name


@pytest.mark.parametrize(
    "entry", ["a", {"sub": ""}, {"sub": "a "}, {"issuer": "x\n"}, {"iss": "a"}, {"sub": 7}], ids=repr
)
def test_entries_that_fit_nobody_are_refused(entry):
    with pytest.raises(ConfigError, match=r"grants\[0\]\.actors\[0\]"):
        load_text(text(ALL | {"actors": [entry]}), "json")


@pytest.mark.parametrize(
    ("one", "two", "conflict"),
    [
        ([A], [], True), ([A], [{}], True), ([A], [A, B], True), ([A], [{"issuer": ISSUER}], True),
        ([A], [B], False), ([A], [A | {"issuer": FOREIGN}], False), ([A], [{"issuer": FOREIGN}], False),
        ([{"issuer": ISSUER}], [{"issuer": FOREIGN}], False),
    ],
)  # fmt: skip
def test_grants_that_share_no_actor_do_not_conflict(one, two, conflict):
    rules = (ALL | {"actors": one}, ALL | {"id": "other", "backend": "c", "actors": two})
    refused = pytest.raises(ConfigError, match="equally specific") if conflict else nullcontext()
    with refused:
        load_text(text(*rules, issuers=[CORP]), "json")


def test_a_role_of_aws_acts_for_the_end_user():
    bench = Bench(ALL | {"actors": [{"sub": ROLE}]}, profile="aws", accounts=[ACCOUNT])
    said = bench.ask(**aws(act={"sub": "a", "iss": FOREIGN}))

    assert (said["principal"], said["actor"], said.get("actor_issuer")) == ("alice", ROLE, None)
    assert bench.reason(**aws(act="a")) == "claim_invalid"
    assert bench.reason(**aws(sub=ROLE) | {AWS_CLAIMS: {"aws_account": ACCOUNT}}) == "no_grant"


@pytest.mark.parametrize(
    ("scope", "reason"), [("orders", "allowed"), ("news", "scope_insufficient"), (..., "scope_insufficient")]
)
def test_a_scope_of_aws_narrows(scope, reason):
    scopes = [{"name": "orders", "path": "/orders"}]
    bench = Bench(ALL, scopes=scopes, profile="aws", accounts=[ACCOUNT], scope_claim="scope")

    assert bench.reason(**aws(scope=scope)) == reason


def test_a_signed_identity_is_never_another_actors():
    bench = Bench(ALL)
    bench.gate.signer = Signer(KeyRing.first(NOW, 86400.0), "https://gate.example.com")
    tokens = [bench.ask(act=act)["identity"] for act in WHO.values()]
    signed = [jwt.decode(token, options={"verify_signature": False}).get("act") for token in tokens]

    assert signed == [None, *({"sub": sub, "iss": iss} for iss in (ISSUER, FOREIGN) for sub in "ab")]


def test_the_audit_names_the_actor_and_those_before(tmp_path):
    bench = Bench(ALL | {"actors": [A]}, audit=tmp_path / "audit.jsonl")
    deep = {"sub": "n9"}
    for number in range(8, 0, -1):
        deep = {"sub": f"n{number}", "act": deep}
    asked = [NESTED, B, A_FOREIGN | {"act": {"sub": "x" * 3000, "act": B}}, deep, ...]
    for act in asked:
        bench.ask(act=act)
    bench.audit.close()

    found = [
        tuple(record.get(name) for name in ("principal", "actor", "actor_issuer", "actor_chain"))
        for record in records(tmp_path / "audit.jsonl", kind="decision")
    ]
    chain = [{"sub": f"n{number}"} for number in range(2, 9)]
    assert found == [
        ("alice", "a", ISSUER, [{"sub": "b", "iss": FOREIGN}, {}, {"sub": "c"}]),
        ("alice", "b", ISSUER, None),
        ("alice", "a", FOREIGN, None),
        ("alice", "n1", ISSUER, chain),
        ("alice", None, None, None),
    ]


def test_a_small_frame_refuses_rather_than_pass_an_agent_for_its_user():
    who = Decision(allow=True, backend="b", expires=1, ticket="t" * 99, actor=Actor("a", FOREIGN, True))
    encoded = actions.encode_verdict(who)
    for limit in range(len(encoded), 231, -1):
        said = spop_transcript.variables(actions.shorten(encoded, limit))
        assert {"actor", "actor_issuer"} <= said.keys() or "backend" not in said


# --- revocations and streams ---------------------------------------------------------------------------


def test_a_revocation_of_an_actor_spares_the_person():
    bench = Bench(ALL)
    rows = {"agent": {"actors": ["a"]}, "for alice": {"actors": ["b"], "principals": ["alice"]}}
    bench.gate.revoke(Revocations(tuple(Revocation(id=name, **row) for name, row in rows.items())))

    assert bench.reason(act=A) == bench.reason(act=A_FOREIGN) == "credential_revoked"
    assert bench.reason(act=B) == "credential_revoked"
    assert bench.reason(act=B, sub="bob") == bench.reason() == bench.reason(sub="a") == "allowed"
    assert bench.reason(act={"sub": "c", "act": A}) == "allowed"


@pytest.mark.parametrize("act", WHO.values(), ids=WHO)
def test_a_stream_is_judged_again_with_its_actor(act):
    bench = Bench(ALL)
    identity = asyncio.run(bench.gate.authenticator.authenticate(f"Bearer {mint(claims(act=act))}"))
    request = Request("GET", "h", "/orders/1", ip_address("192.0.2.1"))
    ticket = Ticket("iam/aa", identity, request, ROLE, "b", "all")

    def cause(*rules, revocations=NONE):
        world = Policy(Config.model_validate(policy(*rules)))
        return judge(ticket.encode(), NOW + 300, NOW, policy=world, sources={}, revocations=revocations).cause

    assert whose(Ticket.decode(ticket.encode())) == whose(ticket)
    assert cause(ALL) == EXPIRED
    assert cause(ALL | {"actors": [A]}) == (EXPIRED if act == WHO["a"] else POLICY_CHANGED)
    assert cause(ALL, deny("people", "*", "/", actors=[{}])) == (EXPIRED if act is ... else POLICY_CHANGED)
    others = [
        Ticket("iam/aa", identity._replace(actor=actor), request, ROLE, "b", "all")
        for actor in (None, identity.actor and identity.actor._replace(sub="z"))
    ]
    assert [whose(other) == whose(ticket) for other in others] == [act is ...] * 2
