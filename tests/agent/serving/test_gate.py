"""A verdict is never remembered past expiry, a lost key or a changed policy, and never for garbage."""

import asyncio
import dataclasses

import pytest
import spop_transcript
import tokens_support
from policies import document, grant
from tokens_support import EC_KEY, ISSUER, NOW, OTHER_EC_KEY, READER, claims, gate_of, mint, public_jwk

from iamroles_agent.base.config import Config
from iamroles_agent.base.identity import McpHeaders
from iamroles_agent.identity_header import KeyRing, Signer
from iamroles_agent.live.ticket import Ticket
from iamroles_agent.policy import Policy
from iamroles_agent.spop.messages import LIMITS, Context
from iamroles_agent.tokens.keys import KeySet
from iamroles_tools.audit.reading import in_order, readings

CORP = {"name": "corp", "issuer": ISSUER, "audiences": ["orders"], "algorithms": ["ES256"]}
POLICY = document(
    grant("R1", "reader", "GET", "/orders", "orders-ro"),
    issuers=[CORP],
    keys={"refresh": "10d", "max_stale": "10d"},
    roles=[READER],
)


def policy(**changes):
    return Policy(Config.model_validate(POLICY | changes))


class Bench(tokens_support.Bench):
    """A gate with a clock that the test moves and keys that it swaps."""

    def keys(self, *jwks):
        source = self.authenticator.sources["corp"]
        lost = list(source._keys or ())
        source._keys, source._fetched_at = KeySet.parse({"keys": list(jwks)}), source._monotonic()
        source._kill([key for key in lost if key not in set(source._keys)])

    def judge(self, check, key=b"question"):
        return text(asyncio.run(self.gate.judge(check, Context("r-1", 5, 7), key)))

    def recall(self, key=b"question"):
        actions = self.gate.recall(key, Context("r-2", 6, 8))
        return None if actions is None else text(actions)


def text(actions):
    found = spop_transcript.variables(actions).items()
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found}


def question(token=None, **changes):
    authorization = f"Bearer {mint(claims()) if token is None else token}"
    return dataclasses.replace(
        spop_transcript.USUAL, **{"authorization": authorization, "path": "/orders/1"} | changes
    )


LONG = {"token": "rubbish", "path": "//" + "%zz" * 4000, "authorization_count": 2}
"""Its length is judged before its path and its credential."""


@pytest.fixture
def bench():
    return Bench(POLICY)


def test_an_allow_is_tagged_and_remembered(bench):
    answer = bench.judge(question())

    assert answer == {
        "status": 200,
        "role": READER["arn"],
        "principal": "alice",
        "session": "id-1",
        "issuer": "corp",
        "rule": "R1",
        "backend": "orders-ro",
        "expires": NOW + 300,
        "ticket": answer["ticket"],
        "allow": True,
    }
    assert Ticket.decode(answer["ticket"]).identity.principal == "alice"
    assert bench.recall() == answer
    assert bench.gate._metrics.verdict_hits == 1
    assert [bench.recall(other) for other in (b"another question", b"")] == [None, None]


@pytest.mark.parametrize(("later", "known"), [(299.999, True), (300, False), (301, False)])
def test_memory_dies_with_the_token(bench, later, known):
    check = question()
    bench.judge(check)
    bench.clock.now = NOW + later

    assert (bench.recall() is not None) is known
    assert bench.judge(check).get("reason") == (None if known else "token_expired")


def test_a_lost_key_takes_its_verdicts_along(bench):
    bench.judge(question())
    bench.keys(public_jwk(OTHER_EC_KEY, "k2"))

    assert bench.recall() is None
    assert bench.gate.remembered == 0


def test_a_new_policy_forgets_everything_at_once(bench):
    bench.judge(question())
    bench.gate.replace(policy(grants=[]))

    assert bench.recall() is None
    assert bench.judge(question())["reason"] == "no_grant"


def test_a_verdict_begun_under_the_old_policy_is_given_by_the_new(bench):
    """A caller that waited through a reload is answered by what the reload put in force."""

    async def race():
        obtained = asyncio.Event()
        real = bench.authenticator.authenticate

        async def slow(*question):
            identity = await real(*question)
            await obtained.wait()
            return identity

        bench.authenticator.authenticate = slow
        judging = asyncio.create_task(bench.gate.judge(question(), Context(), b"question"))
        await asyncio.sleep(0)
        bench.gate.replace(policy(grants=[]))
        obtained.set()
        return text(await judging)

    assert asyncio.run(race())["reason"] == "no_grant"
    assert bench.judge(question())["reason"] == "no_grant"


def test_a_refusal_by_policy_is_remembered_a_bad_credential_is_not(bench):
    refused = bench.judge(question(method="DELETE"), b"no grant")
    garbage = bench.judge(question("garbage"), b"garbage")

    assert refused["reason"] == "no_grant"
    assert bench.recall(b"no grant") == refused
    assert garbage["reason"] == "token_malformed"
    assert bench.recall(b"garbage") is None


@pytest.mark.parametrize(
    ("changes", "reason", "status"),
    [
        ({"authorization": None, "authorization_count": 0}, "no_credentials", 401),
        ({"authorization": "Basic abc"}, "no_credentials", 401),
        ({"authorization_count": 2}, "multiple_credentials", 400),
        ({"path": "/orders/%2e%2e/export"}, "path_ambiguous", 400),
        ({"path": "//x", "token": "garbage"}, "path_ambiguous", 400),
        (LONG, "text_too_long", 400),
        ({"role": "writer"}, "role_not_in_token", 403),
        ({"missing": ("path",)}, "internal_error", 503),
        ({"src": None}, "internal_error", 503),
    ],
)
def test_each_refusal_has_its_reason(bench, changes, reason, status):
    answer = bench.judge(question(**changes))

    assert (answer["reason"], answer["status"], answer["allow"]) == (reason, status, False)


def test_memory_is_bounded_and_keeps_what_is_in_use(bench, monkeypatch):
    monkeypatch.setattr("iamroles_agent.serving.gate._HALF", 40_000)
    bench.judge(question(), b"in use")
    for number in range(200):
        bench.judge(question(path=f"/orders/{number}"), b"%d" % number)
        assert bench.recall(b"in use") is not None

    assert bench.gate.remembered < 100


def test_every_answer_is_on_record_and_no_token_is(tmp_path):
    log = tmp_path / "audit.jsonl"
    bench = Bench(POLICY, log)
    token = mint(claims())
    bench.judge(question(token))
    bench.recall()
    bench.judge(question("garbage.garbage.garbage"))
    bench.clock.now = NOW + 300
    bench.judge(question(token))
    bench.audit.close()
    [reading] = readings(in_order([log]))
    decisions = [record for record in reading if record["kind"] == "decision"]

    assert [(r["verdict"], r.get("reason"), r["request"]) for r in decisions] == [
        ("allow", None, "r-1"),
        ("allow", None, "r-2"),
        ("deny", "token_malformed", "r-1"),
        ("deny", "token_expired", "r-1"),
    ]
    accepted, again, garbage, refused = (record["credential"] for record in decisions)
    assert accepted == again == refused != garbage
    written = log.read_text()
    assert not [text for text in (token, token.split(".")[2], "garbage.garbage") if text in written]


def test_what_cannot_be_recorded_is_refused(bench):
    bench.judge(question())
    bench.audit.record = lambda *_: False

    assert bench.recall()["reason"] == "internal_error"
    assert bench.judge(question())["allow"] is False


MCP = list(LIMITS)[-len(McpHeaders._fields) :]


@pytest.mark.parametrize(("name", "longest"), LIMITS.items())
def test_a_text_of_the_limit_is_judged_and_one_byte_more_is_not(bench, name, longest):
    def asked(length):
        text, field = ("/orders/" if name == "path" else "").ljust(length, "a"), name.removeprefix("mcp-")
        mcp = name in MCP
        return question(**({"mcp": McpHeaders(**{field: text})} if mcp else {name: text}))

    assert bench.judge(asked(longest)).get("reason") != "text_too_long"
    answer = bench.judge(asked(longest + 1))

    assert (answer["status"], answer["reason"], answer["error"]) == (400, "text_too_long", "invalid_request")
    assert not answer["allow"]


def test_a_proxy_that_asks_nothing_of_mcp_opens_no_resource(bench):
    """It was not rendered again: `Origin` would pass unseen."""
    url = "https://a.example/orders"
    resources = [{"name": "old", "resource": url, "versions": ["2025-11-25"]}]
    issuers = [CORP | {"audiences": ["orders", url]}]
    bench.gate.replace(policy(issuers=issuers, resources=resources))

    assert bench.judge(question())["reason"] == "internal_error"
    assert bench.judge(question(mcp=McpHeaders()))["reason"] == "audience_mismatch"
    assert bench.judge(question(host="b.example"))["allow"]


@pytest.mark.parametrize("path", ["/orders/" + "a" * 4000, "/orders" + "/b" * 2000])
def test_a_long_question_is_remembered_and_takes_no_more_room(bench, path):
    key = b"\x09iam-check" + path.encode()
    answer = bench.judge(question(path=path), key)
    taken = bench.gate._state.young_bytes
    bench.gate._state.young_bytes = 0
    bench.judge(question(), b"\x09iam-check short")

    assert answer["allow"]
    assert bench.recall(key) == answer
    assert bench.recall(key + b"x") is None
    assert taken < 4 * bench.gate._state.young_bytes
    assert all(len(held) < 2100 for held in bench.gate._state.young)


def test_refusals_of_strangers_leave_nothing_behind_and_push_nothing_out(bench):
    bench.judge(question())
    held = bench.gate._state.young_bytes

    for n in range(300):
        bench.judge(question(f"{n}.{n}.{n}"), b"a" * n)
        bench.judge(question(path=f"/orders/{n}" + "a" * 5000), b"b" * n)
        bench.judge(question(authorization=None, authorization_count=0), b"c" * n)

    assert bench.gate.remembered == 1
    assert bench.gate._state.young_bytes == held
    assert bench.recall() is not None


def test_a_verdict_with_a_signed_identity_is_remembered_for_half_the_identity_s_life(bench):
    bench.gate.signer = Signer(KeyRing.first(bench.clock.now, 86400.0), "https://gate.example.com")

    first = bench.judge(question())
    assert first["identity"].count(".") == 2
    bench.clock.now += 29
    assert bench.recall() == first
    bench.clock.now += 1
    assert bench.recall() is None
    second = bench.judge(question())
    assert second["identity"] != first["identity"]
    differing = {"identity": "", "ticket": ""}
    assert {**second, **differing} == {**first, **differing}


def test_a_refusal_has_no_signed_identity(bench):
    bench.gate.signer = Signer(KeyRing.first(bench.clock.now, 86400.0), "https://gate.example.com")

    assert "identity" not in bench.judge(question(path="/elsewhere"))
    assert "identity" not in bench.judge(question(token="rubbish"))


class _Disk:
    """An audit whose disk answers when it has done what the test says."""

    def __init__(self):
        self.durable, self.refusing = True, False
        self.recorded, self.meanwhile = [], []

    def record(self, record, request_id, src_port, stream):
        self.recorded.append(record.body)
        return True

    async def confirmed(self):
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return True


@pytest.fixture
def disk(bench):
    made = _Disk()
    bench.gate = gate_of(POLICY, bench.authenticator, bench.clock, made)
    return made


@pytest.mark.parametrize("remembered", [False, True])
def test_what_changed_while_the_record_went_to_disk_decides(bench, disk, remembered):
    """Never the old answer after a change; one record more only where the decision falls otherwise."""
    assert bench.judge(question())["allow"] is True
    if not remembered:
        bench.gate.replace(policy())
    disk.recorded.clear()
    disk.meanwhile.append(lambda: bench.keys(public_jwk(EC_KEY, "other")))

    answer = bench.judge(question())

    assert answer["reason"] == "key_unknown"
    assert ['"verdict":"deny"' in body for body in disk.recorded] == [False, True]


def test_a_change_that_changes_nothing_for_it_is_recorded_once(bench, disk):
    disk.meanwhile.append(lambda: bench.gate.replace(policy()))

    assert bench.judge(question())["allow"] is True
    assert len(disk.recorded) == 1
    assert bench.judge(question())["allow"] is True  # and remembered under what is in force now
    assert bench.gate._metrics.verdict_hits == 1


def test_a_verdict_that_dies_while_its_record_went_to_disk_is_not_given(bench, disk):
    check = question()
    assert bench.judge(check)["allow"] is True
    for key in (b"question", b"asked first now"):
        bench.clock.now = NOW
        disk.meanwhile.append(lambda: setattr(bench.clock, "now", NOW + 300))
        assert bench.judge(check, key)["reason"] == "token_expired"
