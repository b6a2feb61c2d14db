"""Pre-signed GetCallerIdentity (STS), signed by botocore, against a server that checks SigV4."""

import asyncio
import threading
from contextlib import contextmanager
from ipaddress import ip_address
from unittest.mock import Mock
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
import sts_support
import tokens_support
from hypothesis import given
from hypothesis import strategies as st
from jwt.utils import base64url_decode
from policies import document, grant
from spop_client import until
from spop_transcript import variables
from sts_support import GOOD, HOST, KEY_ID, as_json, as_xml, credential, error_xml, outcome, playing, presign
from tokens_support import ACCOUNT, EC_KEY, NOW, Clock, adopt, claims, encode_base64url, gate_of, mint

from iamroles_agent.audit.redaction import credential_hash
from iamroles_agent.base.config import Config, Sts
from iamroles_agent.base.identity import RoleArn
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.spop.messages import Check, Context
from iamroles_agent.tokens.sts import StsVerifier, read_credential
from iamroles_agent.tokens.sts_answer import Rejected, Unavailable, read_answer
from iamroles_agent.tokens.transport import Answer


def _mangled(body):
    return st.builds(
        lambda at, insert, cut: body[:at] + insert + body[at + cut :],
        st.integers(0, len(body)),
        st.binary(max_size=6),
        st.integers(0, 20),
    )


def held(server):
    """An event that an honest STS waits for from now on."""
    release = threading.Event()
    server.replies["/"] = lambda handler: (release.wait(5), sts_support.honest(handler))[1]
    return release


OPEN = document(grant("R1", "reader", "*", "/"), roles=[tokens_support.READER])
"""A policy that lets the reader in everywhere."""


ENTRY = Sts(name="sts", endpoint="https://sts.test", hosts=[HOST], binding_value=sts_support.EDGE)
CHECK = Check(credential(GOOD), 1, None, "GET", "api", "/x", ip_address("10.0.0.1"))


async def reason(agent, header):
    try:
        await agent.authenticate(header)
    except Refusal as refusal:
        refused = refusal
    else:
        return ""
    assert sts_support.TOKEN not in refused.detail  # PRINCIPAL-SECRET-001
    assert sts_support.SECRET not in refused.detail
    return str(refused.reason)


async def once_available(agent, header):
    """The reason, when STS is asked again: after a pause of a tenth of a second or so."""
    async with asyncio.timeout(20):
        while (got := await reason(agent, header)) == "sts_unavailable":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return got


async def test_the_request_is_rebuilt_and_its_signature_still_holds():
    with playing() as (server, agent):
        header = credential(presign())
        identity = await agent.authenticate(header)
        assert identity.roles == (RoleArn("aws", ACCOUNT, "Reader"),)
        assert (identity.issuer, identity.principal, identity.session) == ("sts", sts_support.ARN, "me")
        assert (identity.not_after, identity.issued_at, identity.key_id) == (NOW + 900, NOW, KEY_ID)
        assert identity.credential.startswith("sha256:")
        _, headers = server.requests[0]
        assert (headers["host"], headers["x-iam-edge"]) == (HOST, sts_support.EDGE)
        assert set(headers) == {"host", "x-iam-edge", "accept", "accept-encoding", "user-agent"}
        assert agent.recall(header) == identity
        await agent.authenticate(header)
        assert server.counts["/"] == 1


async def test_a_credential_has_one_name_in_each_form_that_its_holder_can_give_it():
    base, _, query = presign().partition("?")
    forms = [credential(f"{base}?{query}"), credential(f"{base}?{'&'.join(reversed(query.split('&')))}")]
    token = mint(claims(), EC_KEY)
    signed, _, seal = token.rpartition(".")
    raw = base64url_decode(seal)
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    twin = f"{signed}.{encode_base64url(raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32))}"
    with playing() as (_, agent):
        tokens = tokens_support.authenticator_with([tokens_support.public_jwk(EC_KEY, "k1")])
        for who, (first, second) in ((agent, forms), (tokens, [f"Bearer {one}" for one in (token, twin)])):
            names = [(await who.authenticate(one)).credential for one in (first, second)]
            assert first != second
            assert names == [credential_hash(one.partition(" ")[2]) for one in (first, second)]
            assert names[0] == names[1]
    other = [credential_hash(one) for one in (mint(claims(jti="id-2")), credential(presign(NOW + 1))[7:])]
    assert len({*other, *names, credential_hash(forms[0][7:])}) == 4


async def test_lifetime_is_the_dates_whatever_expires_says():
    clock = Clock(NOW + 899.9)

    with playing(clock) as (server, agent):
        header = credential(presign(expires=1))
        assert await reason(agent, header) == ""
        clock.now = NOW + 900
        assert agent.recall(header) is None
        assert await reason(agent, header) == "token_expired"
        assert await reason(agent, credential(presign(expires=900))) == "token_expired"
        assert await reason(agent, credential(presign(now=NOW + 905.5))) == ""
        assert await reason(agent, credential(presign(now=NOW + 907))) == "token_not_yet_valid"
        assert await reason(agent, credential(presign(now=NOW - 3 * 86400))) == "token_expired"
        assert server.counts["/"] == 2


async def test_a_credential_for_another_edge_or_with_a_wrong_secret_is_refused():
    with playing() as (server, agent):
        other = credential(presign(edge="edge-b.example.com"))
        wrong = credential(presign(secret="other"))
        assert await reason(agent, other) == "sts_rejected"
        assert await reason(agent, wrong) == "sts_rejected"
        assert await reason(agent, wrong) == "sts_rejected"
        assert server.counts["/"] == 2  # a final answer is not asked for again
        assert agent.cached == (0, 0)
        assert await reason(agent, credential(GOOD)) == ""


def changed(**values):
    """A good URL with query values changed, by name with `_` for `-`; None removes."""
    parts = urlsplit(presign())
    query = dict(parse_qsl(parts.query))
    for name, value in values.items():
        query[name.replace("_", "-")] = value  # type: ignore[assignment]
    return f"https://{HOST}/?" + urlencode({k: v for k, v in query.items() if v is not None})


LONG = "x" * 3001


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (GOOD.replace(HOST, HOST + ".evil.example"), "issuer_untrusted"),
        (GOOD.replace(HOST, HOST + ":443"), "issuer_untrusted"),
        (GOOD.replace(HOST, HOST + "."), "issuer_untrusted"),
        (GOOD.replace(HOST, HOST.upper()), "issuer_untrusted"),
        (GOOD.replace(HOST, f"{HOST}@evil.example"), "issuer_untrusted"),
        (GOOD.replace(HOST, f"evil@{HOST}"), "issuer_untrusted"),
        (GOOD.replace("https://", "ftp://"), "sts_rejected"),
        (GOOD.replace("https://", "//"), "sts_rejected"),
        (GOOD.replace(HOST + "/", HOST + "//"), "sts_rejected"),
        (GOOD.replace(HOST + "/", HOST + "/x"), "sts_rejected"),
        (GOOD.replace(HOST + "/", HOST), "sts_rejected"),
        (GOOD + "#x", "token_malformed"), (GOOD + "\n", "token_malformed"), (GOOD + " ", "token_malformed"),
        (GOOD + "\\", "token_malformed"), ("", "issuer_untrusted"), ("https://[", "token_malformed"),
        (GOOD + "&Action=GetCallerIdentity", "sts_rejected"), (GOOD + "&action=AssumeRole", "sts_rejected"),
        (GOOD + "&X-Amz-Extra=1", "sts_rejected"), (GOOD + "&RoleArn=x", "sts_rejected"),
        (GOOD + "&" + "&".join(f"a{n}=1" for n in range(50)), "sts_rejected"), (GOOD + "&", "sts_rejected"),
        (GOOD + ";x=1", "sts_rejected"),
        (changed(Action="AssumeRole"), "sts_rejected"), (changed(Action="getcalleridentity"), "sts_rejected"),
        (changed(Action=None), "sts_rejected"), (changed(Version="2010-01-01"), "sts_rejected"),
        (changed(X_Amz_Algorithm="AWS4-ECDSA-P256-SHA256"), "sts_rejected"),
        (changed(X_Amz_Expires="901"), "sts_rejected"), (changed(X_Amz_Expires="-1"), "sts_rejected"),
        (changed(X_Amz_Expires="٦٠"), "sts_rejected"), (changed(X_Amz_Expires=None), "sts_rejected"),
        (changed(X_Amz_Date="20270115T080000"), "sts_rejected"),
        (changed(X_Amz_Date="20270115T250000Z"), "sts_rejected"),
        (changed(X_Amz_Date="20270114T080000Z"), "sts_rejected"),
        (changed(X_Amz_Credential=f"{KEY_ID}/20270115/eu-west-1/s3/aws4_request"), "sts_rejected"),
        (changed(X_Amz_Credential="x/20270115/eu-west-1/sts/aws4_request"), "sts_rejected"),
        (changed(X_Amz_SignedHeaders="host"), "sts_rejected"),
        (changed(X_Amz_SignedHeaders="host;x-iam-edge;x-evil"), "sts_rejected"),
        (changed(X_Amz_SignedHeaders="x-iam-edge"), "sts_rejected"),
        (changed(X_Amz_Signature="0" * 63), "sts_rejected"),
        (changed(X_Amz_Signature="G" * 64), "sts_rejected"),
        (changed(X_Amz_Security_Token=LONG), "token_too_large"),
        (changed(X_Amz_Security_Token="a b"), "sts_rejected"),
        # The Kelvin sign folds to `k`: the agent would have read X-Amz-Security-Token where STS does not.
        (GOOD.replace("X-Amz-Security-Token", "X-Amz-Security-To%E2%84%AAen"), "sts_rejected"),
    ],
    ids=range(46),
)  # fmt: skip
async def test_what_is_wrong_with_the_url_never_reaches_sts(url, expected):
    with playing() as (server, agent):
        assert await reason(agent, credential(url)) == expected
        assert server.counts.total() == 0


async def test_form_of_the_credential():
    with playing() as (server, agent):
        good = credential(GOOD)
        assert await reason(agent, good + "=") == "token_malformed"
        assert await reason(agent, good + "." + "x") == "token_malformed"
        assert await reason(agent, "Bearer iam-sts-v1." + "A" * 4096) == "token_too_large"
        assert await reason(agent, "Bearer iam-sts-v1.") == "issuer_untrusted"
        assert await reason(agent, "Bearer IAM-STS-V1." + good.partition(".")[2]) == "token_malformed"
        assert server.counts.total() == 0


async def test_other_spellings_of_the_names_are_rebuilt_to_ours():
    with playing() as (server, agent):
        url = GOOD.replace("X-Amz-Date", "x-amz-date").replace("Action=", "ACTION=")
        assert await reason(agent, credential(url)) == ""
        assert "&X-Amz-Date=" in server.requests[0][0]


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("text/xml", as_xml(), ""), ("application/xml; charset=utf-8", as_xml(), ""),
        ("application/json", as_json(arn=f"arn:aws:iam::{ACCOUNT}:user/a", user_id="AIDA"), "role_missing"),
        ("application/json", as_json(arn=f"arn:aws:iam::{ACCOUNT}:root", user_id=ACCOUNT), "role_missing"),
        ("text/html", as_json(), "sts_rejected"), ("", as_json(), "sts_rejected"),
        ("application/json", as_xml(), "sts_rejected"), ("text/xml", as_json(), "sts_rejected"),
        ("application/json", as_json(account="999999999999"), "sts_rejected"),
        ("application/json", as_json(account="12345"), "sts_rejected"),
        *(("application/json", as_json(arn=arn), "sts_rejected") for arn in ("nobody", "", "arn:aws:sts")),
        ("application/json", as_json(user_id="AROAEXAMPLE:other"), "sts_rejected"),
        ("application/json", as_json(arn=sts_support.ARN.replace("/me", "/a/me")), "role_malformed"),
        ("application/json", as_json(arn=sts_support.ARN.replace(":aws:", ":aws-evil:")), "role_malformed"),
        ("application/json", as_json().replace(b"{", b'{"x":1,', 1), "sts_rejected"),
        ("application/json", as_json().replace(b'"Arn"', b'"Arn":"x","Arn"'), "sts_rejected"),
        ("application/json", as_json()[:-1], "sts_rejected"),
        ("application/json", b"[" * 9999, "sts_rejected"),
        ("text/xml", as_xml().replace(b"<Arn>", b"<Arn>x</Arn><Arn>", 1), "sts_rejected"),
        ("text/xml", as_xml().replace(b"https://sts", b"https://evil"), "sts_rejected"),
        ("text/xml", b"<x>" + as_xml().partition(b"?>")[2] + b"</x>", "sts_rejected"),
        ("text/xml", as_xml().replace(b"?>", b'?><!DOCTYPE a [<!ENTITY b "c">]>', 1), "sts_rejected"),
        ("text/xml", as_xml().decode().encode("utf-16"), "sts_rejected"),
        ("text/xml", b"", "sts_rejected"), ("text/xml", b"<" * 70_000, "sts_unavailable"),
    ],
    ids=range(27),
)  # fmt: skip
async def test_only_stss_own_answer_is_believed(kind, body, expected):
    with playing() as (server, agent):
        server.raw("/", body, Content_Type=kind)
        assert await reason(agent, credential(GOOD)) == expected
        assert agent.sts.counts["unavailable"] == expected.startswith("sts_")


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize(
    ("status", "kind", "body", "counter"),
    [
        (400, "text/xml", error_xml("Throttling"), "throttled"),
        (400, "text/xml", error_xml("RequestLimitExceeded"), "throttled"),
        (400, "application/json", b'{"Error":{"Code":"ThrottlingException"}}', "throttled"),
        (429, "text/plain", b"", "throttled"), (503, "text/xml", error_xml("SlowDown"), "throttled"),
        (500, "text/xml", error_xml("InternalFailure"), "unavailable"),
        *((302, "text/html", b"", "unavailable"), (403, "text/html", b"<p>Blocked</p>", "unavailable")),
    ],
)  # fmt: skip
async def test_trouble_is_not_a_verdict_and_is_over_when_it_is_over(status, kind, body, counter, once):
    """With a replay cache too, which does not count what was never judged."""
    with playing(replay_cache=once) as (server, agent):
        header, told = credential(GOOD), []
        agent.sts.on_used = lambda *used: told.append(used)  # the parent, which tells the next fetcher
        server.raw("/", body, status, Content_Type=kind)
        assert await reason(agent, header) == "sts_unavailable"
        assert agent.sts.counts[counter] == 1
        assert await reason(agent, header) == "sts_unavailable"
        assert server.counts["/"] == 1  # not hammered
        server.replies["/"] = sts_support.honest
        assert await once_available(agent, header) == ""
        assert len(told) == once


async def test_one_flight_per_credential_and_a_stalled_sts_holds_up_nothing_else():
    with playing() as (server, agent):
        release = held(server)
        waiting = [asyncio.ensure_future(reason(agent, credential(GOOD))) for _ in range(20)]
        await asyncio.sleep(0)
        assert await reason(agent, "Bearer a.b.c") == "token_malformed"
        assert not any(task.done() for task in waiting)
        release.set()
        assert await asyncio.gather(*waiting) == [""] * 20
        assert server.counts["/"] == 1


async def test_what_fails_unforeseen_is_trouble_too_and_says_only_its_kind(monkeypatch):
    with playing(replay_cache=True) as (_server, agent):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError(sts_support.SECRET)))
            assert await reason(agent, credential(GOOD)) == "sts_unavailable"
        assert agent.sts.counts["unavailable"] == 1
        assert await once_available(agent, credential(GOOD)) == ""


async def test_a_dead_sts_times_out():
    with playing(timeout="300ms") as (server, agent):
        hang = threading.Event()
        server.replies["/"] = lambda _: (hang.wait(10), None)[1]
        assert await reason(agent, credential(GOOD)) == "sts_unavailable"
        hang.set()


async def test_replay_cache_lets_a_signature_count_once():
    abroad = as_json(sts_support.ARN.replace(ACCOUNT, "999999999999"), account="999999999999")
    with playing(replay_cache=True, accounts=[ACCOUNT]) as (server, agent):
        header = credential(GOOD)
        for body, said in (
            (b"{}", "sts_rejected"),
            (as_json("nobody"), "sts_rejected"),
            (abroad, "claim_invalid"),
        ):
            server.raw("/", body, Content_Type="application/json")
            assert await reason(agent, header) == said
        server.replies["/"] = sts_support.honest
        assert await reason(agent, credential(presign(secret="other"))) == "sts_rejected"
        assert not agent.sts._used  # only what was accepted counts: forged signatures fill nothing
        assert await asyncio.gather(reason(agent, header), reason(agent, header)) == ["", "sts_rejected"]
        assert agent.recall(header) is None
        assert await reason(agent, header) == "sts_rejected"
        adopt(agent, Config(version=1, sts=[agent.sts._by_host[HOST]]))
        assert await reason(agent, header) == "sts_rejected"
        assert agent.sts.counts["accepted"] == 2  # with the account abroad
        assert await reason(agent, credential(GOOD.replace("Action", "action"))) == "sts_rejected"
        assert await reason(agent, credential(presign(now=NOW - 1))) == ""


async def test_no_signature_counts_twice_though_the_clock_goes_forth_and_back():
    clock = Clock()
    with playing(clock, replay_cache=True) as (_server, agent):
        for now, when, said in ((0, 0, ""), (960, 960, ""), (0, 0, "sts_rejected"), (0, -1, "")):
            clock.now = NOW + now
            assert await reason(agent, credential(presign(now=NOW + when))) == said


@pytest.mark.parametrize("once", [True, False])
async def test_the_gate_remembers_no_verdict_for_a_credential_that_counts_once(once):
    with playing(replay_cache=once) as (_server, agent):
        gate = gate_of(OPEN, agent, Clock())
        assert variables(await gate.judge(CHECK, Context("r", 1, 1), b"key"))["allow"] is True
        assert (gate.recall(b"key", Context("r", 1, 1)) is None) is once


@pytest.mark.parametrize("changed", ["policy", "revocations"])
async def test_a_credential_that_counts_once_is_judged_again_by_what_changes_while_it_waits(changed):
    with playing(replay_cache=True) as (server, agent):
        gate, release = gate_of(OPEN, agent, Clock()), held(server)
        waiting = asyncio.ensure_future(gate.judge(CHECK, Context("r", 1, 1), b"key"))
        await asyncio.to_thread(server.wait_for, "/", 1)
        if changed == "policy":
            adopt(agent, Config(version=1, sts=[agent.sts._by_host[HOST]]))
            gate.replace(gate.policy)
        else:
            gate.revoke(gate.revocations)
        release.set()
        assert variables(await waiting)["allow"] is True
        assert variables(await gate.judge(CHECK, Context("r", 1, 1), b"key"))["reason"] == b"sts_rejected"


async def test_a_session_that_ends_dies_within_the_recheck_remembered_verdicts_included():
    clock = Clock()

    with playing(clock) as (server, agent):
        gate = gate_of(OPEN, agent, clock)
        first = variables(await gate.judge(CHECK, Context(), b"key"))
        server.raw("/", error_xml("ExpiredToken"), 403, Content_Type="text/xml")
        clock.now = NOW + 59
        assert gate.recall(b"key", Context()) is not None
        assert agent.recall(credential(GOOD)) is not None
        clock.now = NOW + 60
        assert gate.recall(b"key", Context()) is None
        assert agent.recall(credential(GOOD)) is None
        assert await reason(agent, credential(GOOD)) == "sts_rejected"
        assert first["expires"] == NOW + 900


async def test_a_clock_that_is_set_back_does_not_lengthen_the_recheck():
    clock = Clock()

    with playing(clock, monotonic=Clock(0.0)) as (_server, agent):
        gate = gate_of(OPEN, agent, clock)
        await gate.judge(CHECK, Context(), b"key")
        clock.now = NOW - 0.9  # as NTP slews it
        agent.watch_clock()
        assert gate.recall(b"key", Context()) is not None
        clock.now = NOW - 600
        agent.watch_clock()
        assert gate.recall(b"key", Context()) is None
        assert agent.recall(credential(GOOD)) is None


@pytest.mark.parametrize(
    ("once", "accounts", "expected"),
    [(False, ["999999999999"], "claim_invalid"), (True, [], ""), (True, ["999999999999"], "sts_rejected")],
)
async def test_a_question_in_flight_survives_a_reload_and_is_judged_by_the_new_policy(
    once, accounts, expected
):
    with playing(replay_cache=once) as (server, agent):
        release = held(server)
        waiting = asyncio.ensure_future(reason(agent, credential(GOOD)))
        await asyncio.to_thread(server.wait_for, "/", 1)
        stricter = agent.sts._by_host[HOST].model_copy(update={"accounts": accounts})
        adopt(agent, Config(version=1, sts=[stricter]))
        release.set()
        assert await waiting == expected
        assert agent.recall(credential(GOOD)) is None


async def test_a_credential_may_be_in_flight_before_and_after_a_reload():
    """The queue goes on, so the two questions have tickets of their own."""
    with stuck() as (transport, former):
        first = asyncio.create_task(outcome(former, signed_by("AKIA0000000000000001"), "a"))
        await until(lambda: len(transport.asked) == 1)
        verifier = StsVerifier([ENTRY], transport, clock=Clock())
        verifier.succeed(former)
        second = asyncio.create_task(outcome(verifier, signed_by("AKIA0000000000000001"), "a"))
        await until(lambda: len(transport.asked) == 2)
        transport.release.set()

        assert await asyncio.gather(first, second) == ["sts_rejected"] * 2
        assert verifier._state["sts"].admission.flying == 0


async def test_http_is_for_tests_only():
    with playing(insecure_http=False) as (server, agent):
        assert await reason(agent, credential(GOOD)) == "sts_unavailable"
        assert await reason(agent, credential(GOOD.replace("https", "http"))) == "sts_rejected"
        assert server.counts.total() == 0


@given(st.integers(0, len(GOOD)), st.text(max_size=6), st.integers(0, 40))
def test_a_mangled_url_is_refused_and_nothing_else(position, insert, cut):
    """Whatever passes is a question built from the policy and checked values: nothing else can travel."""
    url = GOOD[:position] + insert + GOOD[position + cut :]
    token = b"iam-sts-v1." + encode_base64url(url.encode()).encode()
    try:
        question = read_credential(token, {HOST: ENTRY}, NOW)
    except Refusal:
        return
    assert question.url().startswith("https://sts.test/?Action=GetCallerIdentity&Version=2011-06-15&X-Amz-")
    assert question.headers() == {"Host": HOST, "x-iam-edge": sts_support.EDGE, "Accept": "application/json"}


@given(
    st.sampled_from([200, 400, 403, 500]),
    st.sampled_from(["application/json", "text/xml", ""]),
    st.binary(max_size=200) | st.sampled_from([as_json(), as_xml()]).flatmap(_mangled),
)
def test_a_mangled_answer_never_crashes(status, kind, body):
    try:
        caller = read_answer(Answer(status, kind, body))
    except (Rejected, Unavailable):
        return
    assert status == 200
    assert f":{caller.account}:" in caller.arn


class Stuck:
    """A transport whose STS answers only those who sign with a good key; every other call hangs."""

    def __init__(self, good):
        self.good, self.asked, self.release = good, [], asyncio.Event()

    async def get(self, url, **_options):
        key_id = dict(parse_qsl(urlsplit(url).query))["X-Amz-Credential"].partition("/")[0]
        self.asked.append(key_id)
        if key_id in self.good:
            return Answer(200, "application/json", as_json())
        await self.release.wait()
        return Answer(403, "text/xml", error_xml("InvalidClientTokenId"))


def signed_by(key_id, at=0):
    return credential(presign(now=NOW - at).replace(KEY_ID, key_id))


@contextmanager
def stuck():
    transport = Stuck({KEY_ID})
    try:
        yield transport, StsVerifier([ENTRY], transport, clock=Clock())
    finally:
        transport.release.set()


def flood(verifier, sources, count=400):
    """Send this many forged credentials at once, each with an access key id of its own."""
    return [
        asyncio.create_task(outcome(verifier, signed_by(f"AKIA{n:016d}"), f"192.0.2.{n % sources}"))
        for n in range(count)
    ]


@pytest.mark.parametrize(("sources", "known"), [(1, True), (100, True), (1, False)])
async def test_forged_credentials_starve_neither_a_known_caller_nor_a_new_one_elsewhere(sources, known):
    """The forged calls hang as long as they like; the good one does not wait for them."""
    with stuck() as (transport, verifier):
        if known:
            assert await outcome(verifier, signed_by(KEY_ID), "198.51.100.1") == ""
        forged = flood(verifier, sources)
        await asyncio.sleep(0)
        assert await asyncio.wait_for(outcome(verifier, signed_by(KEY_ID, at=5), "198.51.100.1"), 20) == ""
        assert transport.asked.count(KEY_ID) == 1 + known
        assert len(transport.asked) - 1 - known <= 12
        transport.release.set()
        assert set(await asyncio.gather(*forged)) <= {"sts_rejected", "sts_unavailable"}


async def test_a_flood_leaves_nothing_behind():
    with stuck() as (transport, verifier):
        forged = flood(verifier, 7)
        await asyncio.sleep(0.01)
        for task in forged[:50]:
            task.cancel()
        transport.release.set()
        await asyncio.gather(*forged, *verifier._flights._flights.values(), return_exceptions=True)
        await asyncio.sleep(0)  # the last flights land
        state = verifier._state["sts"]
        assert (state.admission.waiting, state.admission.flying, state._waiting) == (0, 0, {})
        assert verifier._flights._flights == {}


THROTTLED = (429, {"Content-Type": "text/xml"}, error_xml("Throttling"))


async def test_who_is_proved_to_sts_and_not_let_in_stays_a_stranger():
    """Anybody has an AWS account, and can make STS throttle it."""
    outsider = presign().replace(KEY_ID, "AKIAOUTSIDER0000")
    theirs = as_json(sts_support.ARN.replace(ACCOUNT, "999999999999"), account="999999999999")
    with playing(accounts=[ACCOUNT]) as (server, agent):
        await agent.authenticate(credential(presign()), "198.51.100.1")
        server.raw("/", theirs, Content_Type="application/json")
        assert await reason(agent, credential(outsider)) == "claim_invalid"
        server.replies["/"] = lambda _: THROTTLED
        again = credential(outsider.replace("Expires=60", "Expires=61"))
        assert await reason(agent, again) == "sts_unavailable"
        server.replies["/"] = sts_support.honest

        await agent.authenticate(credential(presign(now=NOW - 9)), "198.51.100.1")


async def test_strangers_who_make_sts_throttle_do_not_pause_a_known_caller():

    def answer(handler):
        return THROTTLED if "AKIAFORGED" in handler.path else sts_support.honest(handler)

    with playing() as (server, agent):
        server.replies["/"] = answer
        await agent.authenticate(credential(presign()), "198.51.100.1")
        forged = [credential(presign(now=NOW - n).replace(KEY_ID, "AKIAFORGED000000")) for n in range(1, 5)]
        for header in forged:
            assert await reason(agent, header) == "sts_unavailable"
        assert server.counts["/"] == 2  # the first stranger's trouble is known to the next

        await agent.authenticate(credential(presign(now=NOW - 9)), "198.51.100.1")
        assert server.counts["/"] == 3

        server.replies["/"] = lambda _: THROTTLED
        for ago in (11, 12):
            with pytest.raises(Refusal):
                await agent.authenticate(credential(presign(now=NOW - ago)), "198.51.100.1")
        assert server.counts["/"] == 4
