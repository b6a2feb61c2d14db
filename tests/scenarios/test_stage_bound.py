"""Tokens that are bound to a certificate or a key, on each HAProxy, before a puppet agent."""

import base64
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import puppet_gate
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from puppet_gate import ISSUER, POLICY, YES, asked, fields_of, nobody_asked, puppet_spec, raw, record
from waiting import until

from iamroles_scenarios.engine.certificates import Authority, Certificate
from iamroles_scenarios.engine.http import HttpConnection, exchange_h2
from iamroles_scenarios.jose.keys import certificate_of
from iamroles_scenarios.jose.proof import hashed
from iamroles_scenarios.traffic.tls import ClientTls

stage = puppet_gate.stage

SITE, AUTHORITY = Certificate(), Authority()
FILES = {"site.pem": SITE.pem, "clients.pem": AUTHORITY.public}
ASKS = "verify optional ca-file clients.pem crt-ignore-err all ca-ignore-err all"
ALGORITHMS = "ES256 EdDSA"
SETTINGS = {"IAM_BIND_TLS": f"ssl crt site.pem {ASKS} alpn h2,http/1.1 allow-0rtt", "IAM_PROOFS": "20"}
PROVEN = {"dpop": {"origins": ["https://api.example"], "algorithms": ALGORITHMS.split()}}
UNPROVEN = POLICY | {"issuers": [ISSUER | {"bound": "accepted"}]}
BOUND = UNPROVEN | PROVEN
BEARER = 'Bearer realm="iam"'
DPOP = f'DPoP realm="iam", algs="{ALGORITHMS}"'
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
EXPOSED = "WWW-Authenticate, DPoP-Nonce"
MINE = Certificate()
SHOWN = hashed(MINE.der)


@contextmanager
def bound(stage, policy=BOUND, **settings):
    with stage.world(puppet_spec(), policy, settings=SETTINGS | settings, files=FILES) as world:
        world.stage = stage
        yield world


@pytest.fixture(scope="module")
def world(stage):
    with bound(stage) as world:
        yield world


def line_to(world, tls=None):
    proxy = world.tls_proxy if tls else world.proxy
    return closing(HttpConnection((proxy.host, proxy.port), 10, tls))


def request(answer=YES, scheme="", *, headers=(), target="/orders/1"):
    """Return a request with the scheme DPoP if the answer has a proof; None: without a credential."""
    scheme = scheme if scheme != "" else "DPoP" if "proof" in answer else "Bearer"
    said = [] if scheme is None else [f"Authorization: {scheme} {json.dumps(answer)}"]
    return raw(target, None, headers=[*said, *headers])


def ask(world, *arguments, tls=None, **options):
    with line_to(world, tls) as line:
        return line.exchange("GET", request(*arguments, **options))


def tags_of(answer):
    assert answer.status == 200, answer
    return [(name.lower(), value) for name, value in json.loads(answer.body)["headers"]]


def asked_by(world, answer):
    """Return what the agent was asked for an allowed request."""
    return asked(world, dict(tags_of(answer))["x-iam-request-id"])


def proof(name):
    return YES | {"proof": hashed(name.encode())}


def challenges(*answers):
    return {value for answer in answers for value in answer.all("www-authenticate")}


def table(world):
    return world.haproxy.runtime("show table iam-proof")


# --- certificates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_the_agent_learns_the_certificate_kept_alive_and_resumed(world, version):
    tls = ClientTls(MINE.pem, version=version, resumes=True)
    with line_to(world, tls) as line:
        assert not line.resumed
        answers = [line.exchange("GET", request()) for _ in range(3)]
    with line_to(world, tls) as line:
        assert line.resumed
        answers.append(line.exchange("GET", request()))

    assert [asked_by(world, answer)["certificate"] for answer in answers] == [SHOWN] * 4


def test_over_http2_too_and_no_other_connection_is_taken_for_it(world):
    proxy, tls = world.tls_proxy, ClientTls(MINE.pem, alpn=["h2"])
    issued = AUTHORITY.issue("client.example")
    other = hashed(ssl.PEM_cert_to_DER_cert(issued.partition("-----BEGIN PRIVATE")[0]))
    with line_to(world, ClientTls(issued)) as line:
        for _ in range(2):
            over_h2 = exchange_h2((proxy.host, proxy.port), 10, fields_of(), b"", tls)
            assert asked_by(world, over_h2)["certificate"] == SHOWN
            assert asked_by(world, line.exchange("GET", request()))["certificate"] == other


def large():
    """Return a certificate that no buffer of HAProxy holds, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    bulk = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), bytes(17_000))
    builder = certificate_of(key.public_key(), "large", "large").add_extension(bulk, critical=False)
    made = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return (made + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())).decode()


@pytest.mark.parametrize("version", VERSIONS)
def test_none_and_one_that_is_too_large_are_no_certificate(world, version):
    for tls in (None, ClientTls(version=version), ClientTls(large(), version=version)):
        assert asked_by(world, ask(world, tls=tls))["certificate"] is None


VECTORS = Path(__file__).parents[1] / "agent/tokens/vectors/proofs.json"
STANDARD = json.loads(VECTORS.read_text())["RFC 8705"]
"""Appendix A: a certificate, which has expired, and its thumbprint."""
SPELT = f":{base64.b64encode(MINE.der).decode()}:"
FORGED = [
    [f"Client-Cert: {SPELT}"],
    [f"client-cert: {SPELT}", "Client-Cert-Chain: :AAAA:", "X-SSL-Client-Cert: x"],
]
MALFORMED = [
    *([f"Client-Cert: {SPELT}"] * 2, [f"Client-Cert: {SPELT}, {SPELT}"], [f"Client-Cert: {SPELT[:-1]}"]),
    *([f"Client-Cert: {SPELT[1:-1]}"], [f"Client-Cert: {SPELT};a=1"], ["Client-Cert: ::"], ["Client-Cert:"]),
    *([f"Client_Cert: {SPELT}"], [f"Client-Cert: {SPELT[:9]} {SPELT[9:]}"], ["Client-Cert: :AAAAA:"]),
    [f"Client-Cert: {SPELT.replace('+', '-').replace('/', '_')}=:"],
    [f"Client-Cert: {ssl.DER_cert_to_PEM_cert(MINE.der).replace(chr(10), '%0A')}"],
]


@pytest.mark.parametrize("headers", [*FORGED, *MALFORMED[:2]], ids=range(4))
def test_no_client_can_write_its_certificate(world, headers):
    own = Certificate()
    for tls, right in ((None, None), (ClientTls(own.pem), hashed(own.der))):
        answer = ask(world, tls=tls, headers=headers)

        assert asked_by(world, answer)["certificate"] == right
        assert not [name for name, _ in tags_of(answer) if "cert" in name]


def test_of_a_load_balancer_the_header_counts_once_and_in_one_form(stage):
    docker = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"]
    front = {"from": ["192.0.2.0/24", "127.0.0.0/8", *docker, "2001:db8::/32"]}
    with bound(stage, BOUND | {"client_certificate": front}) as behind:
        balancer = ClientTls(Certificate().pem)
        for tls in (None, balancer):
            for headers in FORGED:
                answer = ask(behind, tls=tls, headers=headers)
                assert asked_by(behind, answer)["certificate"] == SHOWN
                assert not [name for name, _ in tags_of(answer) if "cert" in name]
            for headers in [[], *MALFORMED]:
                found = asked_by(behind, ask(behind, tls=tls, headers=headers))
                assert found["certificate"] is None, headers
        found = asked_by(behind, ask(behind, headers=[f"Client-Cert: :{STANDARD['x5c'][0]}:"]))
        assert found["certificate"] == STANDARD["x5t#S256"]
        proxy = behind.proxy
        fields = fields_of(headers=[("client-cert", SPELT)])
        over_h2 = exchange_h2((proxy.host, proxy.port), 10, fields, b"")
        assert asked_by(behind, over_h2)["certificate"] == SHOWN
    with bound(stage, BOUND | {"client_certificate": {"from": ["192.0.2.0/24"]}}) as elsewhere:
        for headers in FORGED:
            assert asked_by(elsewhere, ask(elsewhere, headers=headers))["certificate"] is None


class Holding:
    """A relay to the gate that keeps back what a client says once the gate has spoken: a handshake's end."""

    def __init__(self, address):
        self.held, self._spoken = threading.Event(), threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._server.getsockname())
        self._gate = socket.create_connection(address)
        threading.Thread(target=self._begin, daemon=True).start()

    def _begin(self):
        self._client, _ = self._server.accept()
        threading.Thread(target=self._down, daemon=True).start()
        while data := self._client.recv(65_536):
            if self._spoken.is_set():
                self.held.set()
            else:
                self._gate.sendall(data)

    def _down(self):
        while data := self._gate.recv(65_536):
            self._spoken.set()
            self._client.sendall(data)

    def close(self):
        for one in (self._client, self._gate, self._server):
            one.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="Python sends no early data")
def test_early_data_is_judged_by_nobody_before_the_handshake_has_ended(world, tmp_path):
    address = world.tls_proxy.host, world.tls_proxy.port
    session, early, words = tmp_path / "session", tmp_path / "early", ["openssl", "s_client", "-tls1_3"]
    early.write_bytes(raw("/early", headers=["Connection: close"]))
    first = [*words, "-ign_eof", "-connect", "{}:{}".format(*address), "-sess_out", str(session)]
    done = subprocess.run(first, input=early.read_bytes(), capture_output=True, timeout=20, check=False)
    assert b" 200 OK" in done.stdout

    with nobody_asked(world), closing(Holding(address)) as relay:
        second = [*words, "-ign_eof", "-connect", relay.address, "-sess_in", str(session)]
        client = subprocess.Popen([*second, "-early_data", str(early)], stdout=subprocess.PIPE)
        assert relay.held.wait(10)
        assert ask(world, target="/marker").status == 200
        said = next(line for line in client.stdout if b"Early data was" in line)
        client.kill()
        said += client.communicate()[0]
    # Of these releases none runs a rule before the handshake's end, after which nothing is a replay.
    assert b"Early data was accepted" in said
    assert b" 425 Too Early" in said or b"HTTP/1.1" not in said


def test_what_a_load_balancer_took_as_early_data_is_refused(world):
    with nobody_asked(world):
        assert ask(world, headers=["Early-Data: 1"], target="/too-early").status == 425
    assert record(world, path="/too-early")["reason"] == "early_data"


# --- proofs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "said", "count"),
    [
        ([], None, 0),
        (["DPoP: a.b.c"], "a.b.c", 1),
        (["dpop: a.b.c, d.e.f"], "a.b.c, d.e.f", 2),
        (["DPoP: a.b.c", "DPoP: d.e.f"], "d.e.f", 2),
        (["DPoP: a.b.c", "DPoP:"], "", 2),
        (["DPoP: " + "a" * 4096], "a" * 4096, 1),
    ],
)
def test_the_agent_is_asked_with_the_proof(world, headers, said, count):
    answer = ask(world, proof(f"{said}{count}"), "Bearer" if count else "DPoP", headers=headers)
    found = asked_by(world, answer)

    assert (found["proof"], found["certificate"]) == (said, None)
    assert found["proof-count"] == count
    assert "dpop" not in dict(tags_of(answer))  # the gate counts
    assert list(found)[7:] == ["certificate", "proof", "proof-count"]


def test_a_proof_beyond_4_kb_is_400_without_a_question(world):
    headers = ["DPoP: " + "a" * 4097]
    with nobody_asked(world):
        refused = {scheme: ask(world, scheme=scheme, headers=headers) for scheme in ("DPoP", "Bearer")}

    assert {answer.status for answer in refused.values()} == {400}
    bearer = f'{BEARER}, error="invalid_request"'
    assert challenges(refused["DPoP"]) == {BEARER, f'{DPOP}, error="invalid_request"'}
    assert challenges(refused["Bearer"]) == {bearer, DPOP}


@pytest.fixture
def counting(stage):
    with bound(stage, IAM_PROOFS="2k", IAM_THREADS="2") as world:
        yield world


def test_of_64_simultaneous_requests_with_one_proof_exactly_one_passes(counting):
    def one(line, number):
        return line.exchange("GET", request(proof(f"round {number}")))

    with ExitStack() as stack:
        lines = [stack.enter_context(line_to(counting)) for _ in range(64)]
        pool = stack.enter_context(ThreadPoolExecutor(64))
        for number in range(10):
            answers = list(pool.map(one, lines, [number] * len(lines)))
            refused = [answer for answer in answers if answer.status != 200]
            assert len(refused) == 63, [answer.status for answer in answers]
            assert {answer.status for answer in refused} == {401}
            assert challenges(*refused) == {BEARER, f'{DPOP}, error="invalid_dpop_proof"'}
    assert record(counting, status=401)["reason"] == "proof_replayed"


def test_a_full_table_opens_nothing(stage):
    with bound(stage) as world:
        first = [ask(world, proof(f"p{number}")) for number in range(60)]
        again = [ask(world, proof(f"p{number}")) for number in range(60)]
        other = ask(world, scheme="Bearer")

        statuses = [answer.status for answer in first]
        assert sorted(set(statuses)) == [200, 503]
        assert 200 not in {answer.status for answer in again}
        assert other.status == 200
        assert record(world, status=503)["reason"] == "proofs_full"


def test_after_a_reload_a_proof_still_counts_as_used(counting):
    used = [proof(f"before {number}") for number in range(50)]
    assert {ask(counting, one).status for one in used} == {200}
    for _ in range(2):
        before = counting.haproxy.worker
        counting.haproxy.reload()

        assert counting.haproxy.worker != before
        assert {ask(counting, one).status for one in used} == {401}
        used.append(proof(f"after {before}"))
        assert ask(counting, used[-1]).status == 200


def test_a_request_that_a_reload_meets_on_its_way_uses_no_proof(counting):
    once = request(proof("on its way")), request(scheme="Bearer")
    counting.haproxy.reload()  # which takes seconds after a cold start
    with ExitStack() as stack:
        lines = [stack.enter_context(line_to(counting)) for _ in once]
        for line, sent in zip(lines, once, strict=True):
            line._socket.sendall(sent[:30])
        assert ask(counting, target="/marker").status == 200
        counting.haproxy.reload()
        found = [line.exchange("GET", sent[30:]).status for line, sent in zip(lines, once, strict=True)]

    assert found == [503, 200]
    assert record(counting, status=503)["reason"] == "proofs_moved"
    assert [ask(counting, proof("on its way")).status for _ in range(2)] == [200, 401]


@pytest.mark.parametrize("how", ["goodbye", "close"])
def test_a_question_asked_twice_is_no_replay(world, how):
    answer = proof(how) | {"_lost": how}

    assert ask(world, answer, target="/lost").status == 200
    until(lambda: len([line for line in world.agent.lines() if '"/lost"' in line and how in line]) == 2)
    assert ask(world, answer).status == 401


def test_the_verdict_comes_first(world):
    once = proof("verdict")
    for refusal in ({"status": 403, "allow": False}, {"allow": False}, {"expires": 0}, {"_broken": True}):
        assert ask(world, once | refusal).status in (403, 503)

    assert once["proof"] not in table(world)
    assert ask(world, once).status == 200
    assert once["proof"] in table(world)


def test_an_allowed_proof_that_nobody_counts_opens_nothing(world, stage):
    assert ask(world, YES, "DPoP", target="/uncounted").status == 503
    assert record(world, path="/uncounted")["reason"] == "proof_uncounted"
    for policy in (BOUND | {"dpop": PROVEN["dpop"] | {"replay": "none"}}, UNPROVEN):
        with bound(stage, policy) as other:
            assert ask(other, proof("uncounted")).status == 503
            answer = ask(other, YES, "DPoP", headers=["DPoP: a.b.c"])
            assert ("dpop", "a.b.c") in tags_of(answer)


# --- challenges -----------------------------------------------------------------------------------------

ERRORS = ["invalid_token", "insufficient_scope", "invalid_request"]


@pytest.mark.parametrize("error", [*ERRORS, "invalid_dpop_proof", "use_dpop_nonce", None, 'x"\r\na: b'])
def test_each_scheme_gets_its_own_error(world, error):
    answer = {"status": 401, "allow": False, **({"error": error} if error else {})}
    bearer = f'{BEARER}, error="{error}"' if error in ERRORS else BEARER
    known = (*ERRORS, "invalid_dpop_proof", "use_dpop_nonce")
    mine = f'{DPOP}, error="{error}"' if error in known else DPOP

    for scheme, right in (
        *((scheme, {BEARER, mine}) for scheme in ("DPoP", "dpop", "DPOP")),
        *((scheme, {bearer, DPOP}) for scheme in ("Bearer", "Puppet", "DPoPx")),
    ):
        found = ask(world, answer, scheme)
        assert (found.status, challenges(found)) == (401, right), scheme
        assert len(found.all("www-authenticate")) == 2
        assert found.all("access-control-expose-headers") == [EXPOSED]
        assert not found.all("dpop-nonce")


def test_without_a_credential_both_challenges_have_no_error(world):
    for target in ("/orders/1", "/orders/../1"):
        assert challenges(ask(world, scheme=None, target=target)) == {BEARER, DPOP}


def test_an_access_that_ends_meanwhile_says_so_in_its_scheme(world):
    ends = int(time.time()) + 2
    bearer, mine = (f'{own}, error="invalid_token"' for own in (BEARER, DPOP))
    for scheme, right in (("DPoP", {BEARER, mine}), ("Bearer", {bearer, DPOP})):
        answer = proof(f"ends {scheme}") | {"expires": ends}
        found = ask(world, answer, scheme, target="/orders/1?after=9000")
        assert (found.status, challenges(found)) == (401, right)


@pytest.mark.parametrize("status", [200, 401])
def test_a_nonce_comes_once_and_uncacheable(world, status):
    said = "HTTP/1.1 200 OK\r\nDPoP-Nonce: theirs\r\nDPoP-Nonce: two\r\nCache-Control: public\r\n"
    said += "Access-Control-Expose-Headers: X-Theirs\r\nContent-Length: 0\r\n\r\n"
    target = f"/orders/1?raw={base64.urlsafe_b64encode(said.encode()).decode().rstrip('=')}"
    refused = {"status": 401, "reason": "nonce_required", "error": "use_dpop_nonce", "allow": False}

    def found(name, **more):
        answer = proof(f"nonce {name}") if status == 200 else refused
        return ask(world, answer | more, target=target)

    fresh = found("fresh", nonce="AAAAAAABCw-_")
    assert (fresh.status, fresh.all("dpop-nonce")) == (status, ["AAAAAAABCw-_"])
    assert fresh.all("cache-control") == ["no-store"]
    theirs = ["X-Theirs"] if status == 200 else []
    assert fresh.all("access-control-expose-headers") == [*theirs, EXPOSED]
    for wrong in ("", "a b", "a\r\nX-Forged: 1", "a" * 257, 'a"'):
        other = found(f"wrong {wrong}", nonce=wrong)
        assert other.all("dpop-nonce") == (["theirs", "two"] if status == 200 else [])
        assert not other.all("x-forged")


def test_a_challenge_of_a_server_is_its_own(world):
    said = f"HTTP/1.1 401 No\r\nWWW-Authenticate: {BEARER}\r\nContent-Length: 0\r\n\r\n"
    target = f"/orders/1?raw={base64.urlsafe_b64encode(said.encode()).decode().rstrip('=')}"

    found = ask(world, proof("theirs"), target=target)
    assert (found.status, found.all("www-authenticate")) == (401, [BEARER])
    assert not found.all("access-control-expose-headers")


# --- off ------------------------------------------------------------------------------------------------


def test_without_a_bound_issuer_all_is_as_before(stage):
    with bound(stage, POLICY | PROVEN) as world:
        headers = ["DPoP: a.b.c", f"Client-Cert: {SPELT}", "Early-Data: 1"]
        tls = ClientTls(MINE.pem)
        answer = ask(world, proof("off") | {"nonce": "n"}, tls=tls, headers=headers)
        old = ["authorization", "authorization-count", "role", "method", "host", "path", "src"]
        assert list(asked_by(world, answer)) == old
        assert ("dpop", "a.b.c") in tags_of(answer)
        assert not answer.all("dpop-nonce")
        again = ask(world, proof("off"))
        assert again.status == 200
        refused = ask(world, {"status": 401, "error": "invalid_dpop_proof", "allow": False}, "DPoP")
        assert refused.all("www-authenticate") == [BEARER]
        assert not refused.all("access-control-expose-headers")
        assert "iam-proof" not in world.haproxy.runtime("show table")
    with stage.world(puppet_spec(), POLICY) as plain:
        assert ask(plain).status == 200
        assert "[WARNING]" not in plain.haproxy.logs()
        for policy, second in ((BOUND, 401), (POLICY, 200)):
            plain.haproxy.reload(policy)
            assert [ask(plain, proof("reloaded")).status for _ in range(2)] == [200, second]


def test_no_proof_nonce_or_certificate_is_on_record(world):
    refusal = {"status": 401, "nonce": "secret-nonce", "allow": False}
    ask(world, refusal, headers=["DPoP: secret-proof.b.c"], tls=ClientTls(MINE.pem), target="/last")

    assert record(world, path="/last")
    assert not re.search(f"secret-(proof|nonce)|{SHOWN}", world.haproxy.logs())
