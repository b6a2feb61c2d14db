"""The mock IdP, as a process, over HTTP."""

import asyncio
import itertools
import signal
import socket
import threading
import time
from types import SimpleNamespace
from unittest.mock import AsyncMock
from urllib.parse import urlsplit

import jwt
import pytest
import urllib3
from mock_process import HTTP, fetch, running, verify

from iamroles_scenarios.base.errors import AgentFault, ControlError
from iamroles_scenarios.jose import SHAPES, role_arn
from iamroles_scenarios.mock import control
from iamroles_scenarios.mock.clients import IdpClient
from iamroles_scenarios.mock.issuer import POISONS

READER = role_arn("reader")
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def process():
    with running("mock.idp") as mock:
        yield mock


@pytest.fixture(scope="module")
def idp(process):
    return IdpClient(process.ready["url"])


@pytest.fixture
def issuer(idp):
    return idp.issuer(f"issuer-{next(NUMBERS)}", keys=["ES256"])


@pytest.mark.parametrize("shape", SHAPES)
def test_minted_tokens_verify_against_the_published_keys(idp, shape):
    issuer = idp.issuer(f"shape-{shape}", shape, keys=["ES256"])

    assert READER in str(verify(issuer.mint({"roles": ["reader"]}), issuer.url))


def test_new_issuers_sign_rs256_and_es256(idp):
    issuer = idp.issuer("default")

    assert [key.algorithm for key in issuer.keys] == ["RS256", "ES256"]
    for algorithm in ("RS256", "ES256", "PS384"):
        assert jwt.get_unverified_header(issuer.mint({"alg": algorithm}))["alg"] == algorithm
    verify(issuer.mint({"alg": "ES256"}), issuer.url)


def test_metadata_of_rfc_8414_stands_in_both_places(idp):
    issuer = idp.issuer("meta", keys=["ES256"])

    inserted = fetch(f"{idp.url}/.well-known/oauth-authorization-server/meta")

    assert inserted == fetch(f"{issuer.url}/.well-known/oauth-authorization-server")
    assert inserted["issuer"] == issuer.url


def test_token_endpoint_gives_tokens_to_known_clients_only(idp):
    clients = {"svc": {"secret": "s3", "roles": [READER, role_arn("writer")], "scope": "orders:read"}}
    issuer = idp.issuer("token", "rfc9068", keys=["ES256"], clients=clients)
    form = {"grant_type": "client_credentials"}

    def post(headers=None, **more):
        where = ("POST", f"{issuer.url}/token", form | more)
        return HTTP.request_encode_body(*where, headers=headers, encode_multipart=False)

    good = post(client_id="svc", client_secret="s3", roles=READER)
    bad = post(urllib3.make_headers(basic_auth="svc:wrong"))

    claims = verify(good.json()["access_token"], issuer.url)
    assert (claims["roles"], claims["sub"], claims["scope"]) == ([READER], "svc", "orders:read")
    assert (bad.status, bad.json()["error"]) == (401, "invalid_client")


def test_rotation_with_overlap_and_removal(issuer):
    old = issuer.keys[0]
    before = issuer.mint({})

    new = issuer.rotate()

    assert issuer.keys[0] == new
    verify(before, issuer.url)
    verify(issuer.mint({}), issuer.url)
    issuer.remove(old.kid)
    assert [entry["kid"] for entry in issuer.jwks()] == [new.kid]
    still_mintable = issuer.mint({"key": old.kid})
    with pytest.raises(KeyError):
        verify(still_mintable, issuer.url)


def test_rotation_without_overlap_withdraws_the_old_key_at_once(issuer):
    new = issuer.rotate(overlap=False)

    assert [entry["kid"] for entry in issuer.jwks()] == [new.kid]


def test_a_key_may_sign_before_it_is_published(issuer):
    key = issuer.add_key("ES256", publish=False)

    assert issuer.keys[0] == key
    assert key.kid not in [entry["kid"] for entry in issuer.jwks()]


@pytest.mark.parametrize("kind", POISONS)
def test_poison_is_published(issuer, kind):
    key = issuer.poison(kind)

    shown = fetch(f"{issuer.url}/jwks")["keys"]
    assert len(shown) > 1
    if kind == "weak-rsa":
        assert key.private.key_size == 1024
    if kind == "duplicate":
        assert [entry["kid"] for entry in shown] == [issuer.keys[0].kid] * 2
    if kind == "private":
        assert "d" in shown[-1]


def test_waiting_ends_when_the_count_is_reached(issuer):
    reached: list[dict[str, int]] = []
    waiter = threading.Thread(target=lambda: reached.append(issuer.wait_for("jwks-done", 2)))
    waiter.start()

    fetch(f"{issuer.url}/jwks")
    fetch(f"{issuer.url}/jwks")
    waiter.join(10)

    assert reached[0]["jwks"] == 2
    assert issuer.counters()["jwks-done"] == 2


def test_waiting_has_a_deadline(issuer):
    with pytest.raises(AgentFault, match="the agent did not ask"):
        issuer.wait_for("jwks", 1, deadline=0.05)


@pytest.mark.parametrize(("timeout", "seconds"), [("600", 600.0), ("nan", 86_400.0), ("inf", 86_400.0)])
def test_a_deadline_is_its_callers_up_to_a_day(timeout, seconds):
    counters = AsyncMock(snapshot=dict)
    asyncio.run(control.wait(SimpleNamespace(query={"counter": "jwks", "timeout": timeout}), counters))

    counters.wait.assert_awaited_once_with("jwks", 1, seconds)


def test_faults(issuer):
    url = f"{issuer.url}/jwks"

    issuer.fault("jwks", "status", status=500)
    assert HTTP.request("GET", url).status == 500
    issuer.fault("jwks", "cut")
    with pytest.raises(urllib3.exceptions.HTTPError):
        HTTP.request("GET", url)
    issuer.fault("jwks", "truncated")
    with pytest.raises(urllib3.exceptions.HTTPError):
        HTTP.request("GET", url)
    issuer.fault("jwks", "malformed")
    with pytest.raises(ValueError, match="Expecting value"):
        HTTP.request("GET", url).json()
    issuer.fault("jwks", "oversized", size=100_000)
    assert len(HTTP.request("GET", url).data) >= 100_000
    issuer.fault("jwks", "content-type")
    assert HTTP.request("GET", url).headers["Content-Type"].startswith("text/html")
    issuer.fault("jwks", "slow", seconds=0.2)
    start = time.monotonic()
    fetch(url)
    assert time.monotonic() - start >= 0.2
    issuer.clear("jwks")
    fetch(url)


def test_interim_answers_come_before_one_and_chunks_may_have_extensions(issuer):
    server, sound = urlsplit(issuer.url), fetch(f"{issuer.url}/jwks")
    issuer.fault("jwks", "chunked")
    assert fetch(f"{issuer.url}/jwks") == sound
    issuer.fault("jwks", "early")

    with socket.create_connection((server.hostname, server.port), timeout=10) as connection:
        about = f"Host: {server.netloc}\r\nConnection: close\r\n\r\n"
        connection.sendall(f"GET {server.path}/jwks HTTP/1.1\r\n{about}".encode())
        with connection.makefile("rb") as answer:
            seen = [line for line in answer if line.startswith(b"HTTP/1.1 ")]

    assert [line[9:12] for line in seen] == [b"103", b"103", b"200"]


def test_a_repeated_answer_comes_before_anybody_asks_again_and_the_connection_stays(issuer):
    server = urlsplit(issuer.url)
    issuer.fault("jwks", "repeated", times=1)

    with socket.create_connection((server.hostname, server.port), timeout=10) as connection:
        for page in ("jwks", "no-such-page"):
            connection.sendall(f"GET {server.path}/{page} HTTP/1.1\r\nHost: {server.netloc}\r\n\r\n".encode())
        with connection.makefile("rb") as answers:
            seen = list(itertools.takewhile(lambda line: b" 404 " not in line, answers))

    assert sum(line.endswith(b"HTTP/1.1 200 X\r\n") for line in seen) == 100


def test_a_fault_may_be_for_the_next_requests_only(issuer):
    issuer.fault("*", "status", status=503, times=2)

    assert [HTTP.request("GET", f"{issuer.url}/jwks").status for _ in range(3)] == [503, 503, 200]


def test_redirects_lead_to_the_sound_answer_and_are_counted(issuer):
    issuer.fault("jwks", "redirect")

    stayed = HTTP.request("GET", f"{issuer.url}/jwks", redirect=False)
    followed = urllib3.PoolManager().request("GET", f"{issuer.url}/jwks")

    assert stayed.status == 302
    assert followed.json()["keys"] == issuer.jwks()
    assert issuer.counters()["jwks-moved"] == 1


def test_a_discovery_document_can_lie_about_its_issuer(issuer):
    issuer.fault("discovery", "patch", members={"issuer": "https://elsewhere.example"})

    assert fetch(f"{issuer.url}/.well-known/openid-configuration")["issuer"] == "https://elsewhere.example"


def test_a_stalled_answer_comes_when_the_fault_is_cleared(issuer):
    issuer.fault("jwks", "stall", times=1)
    got: list[object] = []
    reader = threading.Thread(target=lambda: got.append(fetch(f"{issuer.url}/jwks")))
    reader.start()
    issuer.wait_for("jwks", 1)
    assert got == []
    fetch(f"{issuer.url}/jwks")
    assert got == []

    issuer.clear()
    reader.join(10)

    assert len(got) == 1


@pytest.mark.parametrize(
    "command",
    [
        lambda idp: idp.issuer("bad", "no-such-shape"),
        lambda idp: idp.issuer("_control"),
        lambda idp: idp.issuer("bad", keys=["HS256"]),
        lambda idp: idp.issuer("bad", keys=["ES256"]).fault("jwks", "no-such-kind"),
        lambda idp: idp.issuer("bad", keys=["ES256"]).fault("jwks", "slow", second=1),
        lambda idp: idp.issuer("bad", keys=["ES256"]).fault("jwks", "slow", seconds="1"),
        lambda idp: idp.issuer("bad", keys=["ES256"]).fault("jwks", "status", headers=[]),
        lambda idp: idp.issuer("bad", keys=[]).poison("duplicate"),
        lambda idp: idp.issuer("bad", keys=["ES256"]).poison("no-such-poison"),
        lambda idp: idp.issuer("bad", keys=["ES256"]).remove("no-such-kid"),
        lambda idp: idp.get("nobody"),
    ],
)
def test_mistaken_commands_are_refused(idp, command):
    with pytest.raises(ControlError, match=r": 40[04] "):
        command(idp)


def test_public_url_is_what_tokens_and_documents_carry():
    with running("mock.idp", "--public-url", "http://idp.test:8080/") as mock:
        idp = IdpClient(f"http://{mock.ready['address']}", "http://idp.test:8080")
        issuer = idp.issuer("corp", keys=["ES256"])

        document = fetch(f"http://{mock.ready['address']}/corp/.well-known/openid-configuration")

    assert issuer.url == "http://idp.test:8080/corp"
    assert document["jwks_uri"] == f"{issuer.url}/jwks"


def test_ends_on_sigterm_and_when_its_input_closes():
    with running("mock.idp") as mock:
        mock.process.send_signal(signal.SIGTERM)
        assert mock.process.wait(10) == 0
    with running("mock.idp") as mock:
        mock.process.stdin.close()
        assert mock.process.wait(10) == 0


@pytest.mark.parametrize("busy", [True, False])
def test_an_address_that_cannot_be_had_is_one_sentence(process, capfd, busy):
    address = process.ready["address"] if busy else "192.0.2.1:0"
    with pytest.raises(AssertionError, match="ended with 3"), running("mock.idp", "--listen", address):
        pass

    said = capfd.readouterr().err
    assert "cannot serve: " in said
    assert ("Free the address" in said) is busy
