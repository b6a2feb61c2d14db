"""The key cache (JWKS) against a real HTTP server that counts what it is asked."""

import asyncio
import itertools
import json
import threading
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
import tokens_support
from spop_client import until
from tokens_support import EC_KEY, OTHER_EC_KEY, adopt, claims, issuer, mint, public_jwk, reason, serving

from iamroles_agent.base.config import Config, KeySettings
from iamroles_agent.base.reasons import Refusal
from iamroles_agent.tokens import Authenticator

OLD, NEW = public_jwk(EC_KEY, "old"), public_jwk(OTHER_EC_KEY, "new")


def keys(*jwks):
    return {"keys": list(jwks)}


def old(**changes):
    return "Bearer " + mint(claims(**changes), EC_KEY, kid="old")


def new(**changes):
    return "Bearer " + mint(claims(**changes), OTHER_EC_KEY, kid="new")


def config(*servers, **timing):
    """Issuers `i0`, `i1`, … with their keys at /jwks of a server each."""
    settings = {"refresh": "1h", "cooldown": "10s", "max_stale": "1d", "timeout": "3s"} | timing
    issuers = [
        issuer(name=f"i{n}", issuer=server.url, jwks_uri=server.url + "/jwks", insecure_http=True)
        for n, server in enumerate(servers)
    ]
    return Config(version=1, issuers=issuers, keys=KeySettings.model_validate(settings))


@asynccontextmanager
async def running(configuration):
    authenticator = Authenticator(configuration, clock=tokens_support.Clock())
    await authenticator.start()
    try:
        yield authenticator
    finally:
        await authenticator.close()


def stricter(server):
    """The issuer's configuration with another audience."""
    issuers = [config(server).issuers[0].model_copy(update={"audiences": ["other"]})]
    return config(server).model_copy(update={"issuers": issuers})


def stranger(server):
    """A token with a kid that nobody published."""
    return "Bearer " + mint(claims(iss=server.url), kid="stranger")


@asynccontextmanager
async def accepting(server, **timing):
    """An agent that accepted a token of this issuer, and the token."""
    async with running(config(server, **timing)) as agent:
        token = old(iss=server.url)
        assert await reason(agent, token) == ""
        yield agent, token


@pytest.fixture
def server():
    """An issuer's server with one key in its set."""
    with serving() as server:
        server.json("/jwks", keys(OLD))
        yield server


@pytest.fixture
def gate(server):
    """Opens for the answers of the issuer's server."""
    gate, good = threading.Event(), server.replies["/jwks"]
    server.replies["/jwks"] = lambda handler: (gate.wait(5), good(handler))[1]
    return gate


async def test_a_token_before_the_first_set_waits_for_one_flight(server, gate):
    async with running(config(server)) as agent:
        waiting = [asyncio.ensure_future(reason(agent, old(iss=server.url, jti=str(n)))) for n in range(50)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*waiting) == [""] * 50
    assert server.counts["/jwks"] == 1


async def test_start_does_not_wait_for_a_dead_issuer(server):
    hang = threading.Event()
    server.replies["/jwks"] = lambda _: (hang.wait(10), None)[1]
    async with running(config(server, timeout="1s")) as agent:
        assert agent.sources["i0"].failures == 0  # the flight is still under way
        assert await reason(agent, old(iss=server.url)) == "keys_unavailable"
    hang.set()


async def test_after_a_long_outage_the_next_fetch_is_a_cooldown_away(server, caplog):
    async with running(config(server, refresh="5m", cooldown="2s")) as agent:
        agent.sources["i0"].failures = 9
        agent.sources["i0"]._failed("the issuer is down")
    assert "again in 2.0 s" in caplog.text


async def test_discovery(server):
    path = "/corp/.well-known/openid-configuration"
    iss = server.url + "/corp"
    server.json(path, {"issuer": iss, "jwks_uri": server.url + "/jwks"})
    entry = issuer(issuer=iss, jwks_uri=None, insecure_http=True)
    async with running(Config(version=1, issuers=[entry])) as agent:
        assert await reason(agent, old(iss=iss)) == ""
        assert await reason(agent, old(iss=iss + "/")) == "issuer_untrusted"
    server.json(path, {"issuer": iss + "/", "jwks_uri": server.url + "/jwks"})
    async with running(Config(version=1, issuers=[entry])) as agent:
        assert await reason(agent, old(iss=iss)) == "keys_unavailable"


async def test_discovery_that_moves_the_keys_is_followed_within_refresh(server):
    path = "/.well-known/openid-configuration"
    server.json(path, {"issuer": server.url, "jwks_uri": server.url + "/jwks"})
    server.json("/moved", keys(NEW))
    entry = issuer(issuer=server.url, jwks_uri=None, insecure_http=True)
    settings = KeySettings.model_validate({"refresh": "1s"})
    async with running(Config(version=1, issuers=[entry], keys=settings)) as agent:
        assert await reason(agent, old(iss=server.url)) == ""
        server.json(path, {"issuer": server.url, "jwks_uri": server.url + "/moved"})
        await until(lambda: agent.sources["corp"].kids == ("new",))
        assert server.counts["/jwks"] == 1  # at the first renewal already
        assert await reason(agent, old(iss=server.url)) == "key_unknown"


async def test_http_needs_the_policys_word(server):
    entry = issuer(issuer=server.url, jwks_uri=server.url + "/jwks")
    async with running(Config(version=1, issuers=[entry])) as agent:
        assert await reason(agent, old(iss=server.url)) == "keys_unavailable"
    assert server.counts.total() == 0


async def test_redirects_are_not_followed(server):
    server.json("/elsewhere", keys(OLD))
    server.raw("/jwks", b"", 302, Location=server.url + "/elsewhere")
    async with running(config(server)) as agent:
        assert await reason(agent, old(iss=server.url)) == "keys_unavailable"
    assert server.counts["/elsewhere"] == 0


async def test_ten_thousand_random_kids_cause_one_fetch_and_good_tokens_do_not_notice(server):
    async with accepting(server) as (agent, good):
        storm = ["Bearer " + mint(claims(iss=server.url), kid=f"random-{n}") for n in range(2000)]
        answers = await asyncio.gather(*(reason(agent, token) for token in storm))
        assert set(answers) == {"key_unknown"}
        for n in range(8000):  # the same path, without the cost of signing
            with pytest.raises(Refusal, match="key_unknown"):
                await agent.sources["i0"].obtain(f"more-{n}", "ES256")
        assert agent.recall(good) is not None
        assert await reason(agent, old(iss=server.url, jti="another")) == ""
        assert len(agent.sources["i0"]._asked) <= 1024
    assert server.counts["/jwks"] == 2


@pytest.mark.parametrize("cooldown", ["10s", "1h"])
async def test_a_key_rotated_right_after_a_fetch_is_accepted_at_once(server, cooldown):
    """The trap of JWKS-FETCH-001: a cooldown that starts at each successful fetch would refuse it."""

    async with accepting(server, cooldown=cooldown) as (agent, _):
        server.json("/jwks", keys(OLD, NEW))
        assert await reason(agent, new(iss=server.url)) == ""
        third = public_jwk(EC_KEY, "third")  # and once more, right after that fetch
        server.json("/jwks", keys(OLD, NEW, third))
        token = "Bearer " + mint(claims(iss=server.url), EC_KEY, kid="third")
        assert await reason(agent, token) == ""
        assert await reason(agent, old(iss=server.url, jti="x")) == ""
    assert server.counts["/jwks"] == 3


async def test_an_issuer_whose_servers_disagree_is_asked_no_more_often_for_random_kids(server):
    sets = itertools.cycle([keys(OLD), keys(NEW)])
    server.replies["/jwks"] = lambda _: (200, {}, json.dumps(next(sets)).encode())
    async with accepting(server) as (agent, _):
        for n in range(5):
            token = "Bearer " + mint(claims(iss=server.url), kid=f"random-{n}")
            assert await reason(agent, token) == "key_unknown"
    assert server.counts["/jwks"] == 2


async def test_the_fetch_at_the_end_of_a_cooldown_begins_the_next_one_also_if_it_changed_the_set(server):
    sets = itertools.cycle([keys(OLD), keys(NEW)])
    server.replies["/jwks"] = lambda _: (200, {}, json.dumps(next(sets)).encode())
    async with accepting(server, cooldown="1500ms") as (agent, _):
        for fetches in (1, 2, 3):
            await until(lambda: server.counts["/jwks"] >= fetches)  # noqa: B023 - of this round
            token = "Bearer " + mint(claims(iss=server.url), kid=f"random-{fetches}")
            assert await reason(agent, token) == "key_unknown"
    assert server.counts["/jwks"] == 3


@pytest.mark.parametrize(("former", "kid"), [("600ms", "stranger"), ("1h", "new")])
async def test_a_rotation_inside_the_cooldown_is_seen_when_it_ends(server, former, kid):
    async with accepting(server, cooldown=former) as (agent, _):
        assert await reason(agent, "Bearer " + mint(claims(iss=server.url), kid=kid)) == "key_unknown"
        server.json("/jwks", keys(OLD, NEW))
        adopt(agent, config(server, cooldown="600ms"))
        assert await reason(agent, new(iss=server.url)) == ""  # waits for the end, then is right
    assert server.counts["/jwks"] == 3


@pytest.mark.parametrize("former", ["2s", "1h"])
async def test_a_long_cooldown_answers_at_once_and_recovers_by_itself(server, former):
    async with accepting(server, cooldown=former) as (agent, _):
        assert await reason(agent, stranger(server)) == "key_unknown"
        server.json("/jwks", keys(OLD, NEW))
        assert await reason(agent, new(iss=server.url)) == "key_unknown"
        adopt(agent, config(server, cooldown="2s"))
        await until(lambda: "new" in agent.sources["i0"].kids)
        assert await reason(agent, new(iss=server.url)) == ""


async def test_the_first_keys_are_a_change_for_what_was_judged_without_them(server):
    changes = []
    async with running(config(server)) as agent:
        agent.on_change.append(lambda: changes.append(agent.sources["i0"].keys is not None))
        assert await reason(agent, old(iss=server.url)) == ""
        assert changes == [True]


async def test_a_removed_key_is_refused_within_refresh_and_so_are_cached_verdicts(server):
    changes = []
    server.json("/jwks", keys(OLD, NEW))
    async with accepting(server, refresh="400ms") as (agent, token):
        other = new(iss=server.url)
        assert await reason(agent, other) == ""
        agent.on_change.append(lambda: changes.append((agent.generation, server.counts["/jwks"])))
        assert agent.recall(token) is not None
        flights = server.counts["/jwks"]
        server.json("/jwks", keys(NEW))
        await until(lambda: agent.recall(token) is None)
        [(generation, counted)] = changes
        assert generation == 2
        assert counted <= flights + 2  # one may have been under way
        assert await reason(agent, token) == "key_unknown"
        assert agent.recall(other) is not None


async def test_a_key_that_changed_under_its_kid_is_another_key(server):
    async with accepting(server, refresh="300ms") as (agent, token):
        server.json("/jwks", keys(public_jwk(OTHER_EC_KEY, "old")))
        await until(lambda: agent.generation == 2)
        assert agent.recall(token) is None
        assert await reason(agent, token) == "signature_invalid"


async def test_renewal_without_change_keeps_what_is_cached(server):
    async with accepting(server, refresh="200ms") as (agent, token):
        await until(lambda: server.counts["/jwks"] >= 4)
        assert agent.recall(token) is not None
        assert agent.generation == 1


async def test_outage_serves_the_last_good_set_up_to_max_stale(server):
    timing = {"refresh": "200ms", "max_stale": "1500ms", "cooldown": "300ms"}
    async with accepting(server, **timing) as (agent, token):
        good = server.replies["/jwks"]
        server.raw("/jwks", b"", 500)
        await until(lambda: agent.sources["i0"].failures >= 2)
        assert await reason(agent, old(iss=server.url, jti="during")) == ""
        assert agent.recall(token) is not None
        await until(lambda: agent.recall(token) is None)
        assert agent.generation == 2
        assert await reason(agent, token) == "keys_unavailable"
        server.replies["/jwks"] = good
        await until(lambda: agent.sources["i0"].age is not None)
        assert await reason(agent, token) == ""


@pytest.mark.parametrize(
    "poison",
    [
        b'{"keys":[', b"[]", b'{"keys":{}}', b"x" * 300_000, b'{"keys":[],"keys":[]}',
        b'{"keys":[{"kty":"oct","k":"AA","kid":"old"}]}',
        b'{"keys":[{"kid":"a"},{"kid":"a"}]}', b'\xef\xbb\xbf{"keys":[]}', b"",
    ],
    ids=range(9),
)  # fmt: skip
async def test_a_poisoned_set_leaves_the_last_good_one(server, poison):
    async with accepting(server, refresh="100ms") as (agent, token):
        server.raw("/jwks", poison)
        await until(lambda: agent.sources["i0"].failures >= 1)
        assert agent.recall(token) is not None
        assert await reason(agent, old(iss=server.url, jti="later")) == ""


async def test_an_empty_set_revokes_every_key(server):
    async with accepting(server, refresh="100ms") as (agent, token):
        server.json("/jwks", keys())
        await until(lambda: agent.recall(token) is None)


async def test_a_slow_issuer_delays_only_its_own(server):
    with serving() as slow:
        release = threading.Event()
        slow.replies["/jwks"] = lambda _: (release.wait(10), None)[1]
        async with running(config(server, slow)) as agent:
            stuck = asyncio.ensure_future(reason(agent, old(iss=slow.url)))
            assert await reason(agent, old(iss=server.url)) == ""
            assert not stuck.done()
            release.set()
            assert await stuck == "keys_unavailable"


def drip(before, handler):
    """Reply with this, and then one byte at a time, for as long as anybody reads it."""
    try:
        for part in before:
            handler.wfile.write(part)
        while True:
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)
    except OSError:
        handler.close_connection = True


@pytest.mark.parametrize(
    "before",
    [(), (b"HTTP/1.1 200 OK\r\n", b"X-Drip: "), (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",)],
    ids=["all", "headers", "body"],
)
async def test_a_key_server_that_drips_stops_no_renewal(server, before):
    """A key that was removed is refused, though the server drips at every renewal but some."""
    good = server.replies["/jwks"]
    async with accepting(server, timeout="300ms", refresh="400ms", max_stale="1500ms") as (agent, token):
        server.replies["/jwks"] = partial(drip, before)
        source = agent.sources["i0"]
        await until(lambda: source.failures >= 2)
        await until(lambda: source.age is None)
        assert await reason(agent, token) == "keys_unavailable"
        server.replies["/jwks"] = good
        await until(lambda: source.age is not None)
        assert await reason(agent, token) == ""


async def test_a_flight_that_never_ends_is_left_behind(server, monkeypatch):
    """A resolver that hangs cannot be cut, but the next flight begins."""
    asked, hang = tokens_support.hanging_resolver(monkeypatch)
    async with running(config(server, timeout="100ms")) as agent:
        await until(lambda: len(asked) > 1 and agent.sources["i0"].age is not None)
        assert await reason(agent, old(iss=server.url)) == ""
    hang.set()


async def test_new_timing_for_an_unchanged_issuer_keeps_its_keys_through_an_outage(server):
    """A reload that changes `cooldown` alone, while the issuer is down."""
    async with accepting(server) as (agent, token):
        server.replies["/jwks"] = lambda _: (500, {}, b"")
        agent.sources["i0"].failures = 1  # the next fetch comes after a long pause, as after a failure
        adopt(agent, config(server, cooldown="3s", refresh="2h"))
        assert await reason(agent, token) == ""
        await until(lambda: server.counts["/jwks"] == 2)


async def test_a_reload_keeps_keys_of_unchanged_issuers_and_forgets_identities(server):
    async with accepting(server) as (agent, token):
        adopt(agent, config(server))
        assert agent.generation == 2
        assert agent.recall(token) is None
        assert await reason(agent, token) == ""
        adopt(agent, stricter(server))
        assert await reason(agent, token) == "audience_mismatch"
        adopt(agent, config())
        assert await reason(agent, token) == "issuer_untrusted"
    assert server.counts["/jwks"] == 1


async def test_a_token_that_waited_through_a_reload_is_judged_by_the_new_policy(server, gate):
    async with running(config(server)) as agent:
        token = old(iss=server.url)
        waiting = asyncio.ensure_future(reason(agent, token))
        await asyncio.sleep(0)
        adopt(agent, stricter(server))
        gate.set()
        assert await waiting == "audience_mismatch"
        assert agent.recall(token) is None


async def test_a_cancelled_waiter_leaves_the_flight_to_the_others(server, gate):
    async with running(config(server)) as agent:
        gone = asyncio.ensure_future(agent.authenticate(old(iss=server.url)))
        stays = asyncio.ensure_future(reason(agent, old(iss=server.url, jti="stays")))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        gate.set()
        assert await stays == ""
    assert server.counts["/jwks"] == 1
