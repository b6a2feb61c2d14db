"""Guarantees for a server, on every HAProxy: mutual TLS to it, and the signed identity header."""

import contextlib
import http.client
import json
import ssl
from functools import partial
from pathlib import Path

import puppet_gate
import pytest
from listening import listening
from puppet_gate import POLICY, YES, ask, puppet_spec, record

from iamroles_scenarios.engine.certificates import Authority
from iamroles_scenarios.stage.container import HOME

world = puppet_gate.world
NAME = "orders.internal"


# --- the signed identity header -------------------------------------------------------------------------


def test_a_server_gets_the_signed_identity_of_the_agent_and_no_other(world):
    answer = ask(world, answer={**YES, "identity": "aaa.bbb.ccc"}, headers=["X-IAM-Identity: forged"])
    without = ask(world, headers=["X-IAM-Identity: forged", "x_iam_identity: forged"])

    assert answer.header("x-iam-identity") == ["aaa.bbb.ccc"]
    assert without.header("x-iam-identity") == []
    assert "forged" not in without.body.decode()


@pytest.mark.parametrize("text", ["a\r\nX-Admin: 1", "a\nb"])
def test_a_signed_identity_cannot_forge_a_header(world, text):
    assert ask(world, answer={**YES, "identity": text}).status == 503


def test_a_signed_identity_is_not_in_the_record(world):
    request = ask(world, answer={**YES, "identity": "secret.secret.secret"}).header("x-iam-request-id")[0]

    assert record(world, request_id=request)
    assert "secret.secret" not in world.haproxy.logs()


# --- mutual TLS -----------------------------------------------------------------------------------------


@pytest.fixture
def authority():
    return Authority()


@pytest.fixture
def serve(world, authority, tmp_path):
    """Starts a server that asks for a certificate of the authority; gives its address."""
    with contextlib.ExitStack() as ends:

        def start(certificate):
            (tmp_path / "server.pem").write_text(certificate)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tmp_path / "server.pem")
            context.load_verify_locations(cadata=authority.public)
            context.verify_mode = ssl.CERT_REQUIRED
            host = world.agent.inner_address.rpartition(":")[0]
            return ends.enter_context(listening(partial(answer, context), host))

        yield start


def answer(context, connection):
    """Answer with the caller's certificate and the principal that it asks for."""
    with context.wrap_socket(connection, server_side=True) as secured:
        stream = secured.makefile("rb")
        stream.readline()
        fields = http.client.parse_headers(stream)
        subject = dict(pair for pairs in secured.getpeercert()["subject"] for pair in pairs)
        body = json.dumps({"caller": subject["commonName"], "identity": fields["X-IAM-Principal"]}).encode()
        secured.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


WRONG = "authority", "name", "no-certificate", "foreign-certificate"


def test_server_and_gate_prove_themselves_and_who_cannot_gets_no_request(world, authority, serve, tmp_path):
    stranger = Authority()
    files = {"backends.pem": authority.public, "gate.pem": authority.issue("gate.internal")}
    files["foreign.pem"] = stranger.issue("gate.internal")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    # A container has the files beside its configuration.
    place = Path(HOME) / "haproxy" if world.stage.kind == "containers" else tmp_path
    servers = dict.fromkeys(["sound", *WRONG], serve(authority.issue(NAME)))
    servers |= {"authority": serve(stranger.issue(NAME)), "name": serve(authority.issue("export.internal"))}
    tls = {"ca": f"{place}/backends.pem", "certificate": f"{place}/gate.pem", "name": NAME}
    backends = {name: {"name": name, "servers": [at], "tls": {**tls}} for name, at in servers.items()}
    backends["foreign-certificate"]["tls"]["certificate"] = f"{place}/foreign.pem"
    del backends["no-certificate"]["tls"]["certificate"]
    policy = {**POLICY, "backends": [*backends.values()]}

    with world.stage.world(puppet_spec(), policy, files=files) as own:
        answers = {name: ask(own, f"/{name}", {**YES, "backend": name}) for name in backends}
        routes = [record(own, path=f"/{name}", verdict="200")["route"] for name in backends]

    assert routes == [*backends]
    assert answers["sound"].echo == {"caller": "gate.internal", "identity": "alice"}
    assert {name for name in WRONG if answers[name].status not in (502, 503)} == set()
