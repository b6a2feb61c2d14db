"""`policy render --for kubernetes-ingress`: Kubernetes takes each document, and HAProxy what is in them.

The controller itself is not here. Its configuration is put together as its documentation and its start script
say: its own sections with the two pieces, and then the files of the ConfigMap that is mounted beside them.
"""

import contextlib
import http.client
import json
import re
import ssl
import subprocess
import time

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from listening import listening, nowhere
from policies import ISSUER, document, grant
from programs import running, world
from test_render import DPOP, FRONT, binaries
from tokens_support import publishing, token_of
from waiting import until

from iamroles_scenarios.engine.certificates import Certificate
from iamroles_scenarios.jose.keys import SigningKey
from iamroles_scenarios.jose.proof import hashed, jwk_of, proof, thumbprint
from iamroles_scenarios.stage import haproxies
from iamroles_tools.haproxy import kubernetes, render

HOSTILE = 'x" ]\n---\nkind: Pod\n# é \u2028\x7f\u0085 {{ }} \U0001f600 \\ : - | > & * !!python/object'
AGENT = {"listen": "0.0.0.0:9901"}
SOCKET = "unix:/run/iamroles/agent.sock"
TLS = {"certificate": "agent.pem", "ca": "ca.pem", "names": ["proxy.test"]}
PROVEN = {"listen": ["[::]:7000", SOCKET], "tls": TLS}
OWN_TLS = ("--agent-ca", "/tls/ca.pem", "--agent-certificate", "/tls/p.pem")
MCP = {
    "issuers": [ISSUER | {"audiences": ["api", "https://mcp.test/mcp"]}],
    "resources": [{"name": "mcp", "resource": "https://mcp.test/mcp"}],
}
OUTSIDE = "state", "/srv/state", "/var/lib/iamroles", "/var/lib/iamroles/../state"
KEPT = {"nonce": True, "nonce_key": "nonce.key"}
GATE = {"issuer": "https://gate.test"}
SHARED = GATE | {"secrets": "gate.key"}
BOUND = {"issuers": [ISSUER | {"bound": "accepted"}]}
POLICIES = {
    "plain": ({"agent": AGENT}, ()),
    "tls": ({"agent": PROVEN}, (*OWN_TLS, "--secret", "--replicas", "9")),
    "metrics": ({"agent": {"listen": [SOCKET, "10.0.0.1:9901"]}, "metrics": {"listen": "[::]:9902"}}, ()),
    "mcp": ({"agent": AGENT} | MCP, ()),
    "bound": ({"agent": AGENT, "dpop": DPOP, "client_certificate": FRONT} | BOUND, ("--client-ca", "a/b")),
    "hostile": ({"agent": AGENT, "x-note": HOSTILE}, ("--realm", "the edge: #1", "--image", 'a"b#c:{d}')),
}


def policy(**tables):
    rules = grant("R", "reader", "GET", "/orders", "b"), grant("H", "reader", "GET", "/h", "b")
    return document(*rules, **tables)


def rendered(tmp_path, name="plain", *options, text=None, code=0, **tables):
    path = tmp_path / "policy.json"
    found, more = POLICIES[name]
    path.write_text(text or json.dumps(policy(**(found | tables)), ensure_ascii=False))
    words = ["--for", "kubernetes-ingress", "--config", str(path), "--output", str(tmp_path / "out")]
    image = [] if "--image" in more else ["--image", "registry.test/agent:1"]
    done = CliRunner().invoke(render.render, [*words, *image, *more, *options])
    assert done.exit_code == code, done.output
    if code:
        return done.output
    return (tmp_path / "out" / "iam-kubernetes.yaml").read_text(encoding="utf-8")


def objects(text):
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


@pytest.mark.parametrize("name", POLICIES)
def test_kubernetes_takes_each_document_and_the_policy_as_it_was(tmp_path, name):
    found = objects(rendered(tmp_path, name))

    kinds = {kind for kind, _ in found}
    assert kinds >= {"ConfigMap", "Deployment", "Service", "NetworkPolicy", "PodDisruptionBudget"}
    assert ("ServiceMonitor" in kinds) is (name == "metrics")
    for (kind, _), one in found.items():
        if kind == "ServiceMonitor":  # a custom resource, whose schema is in no release of Kubernetes
            assert one["spec"]["endpoints"][0]["port"] in str(found["Service", "iam-agent"]["spec"]["ports"])
            continue
        for version in ("1.28", kubernetes_validate.latest_version()):
            kubernetes_validate.validate(one, version, strict=True)
    kind, key = ("Secret", "stringData") if name == "tls" else ("ConfigMap", "data")
    data = found[kind, "iam-policy"][key]
    assert data == {"policy.json": (tmp_path / "policy.json").read_text()}


def test_what_all_pods_share_is_mounted_from_a_secret(tmp_path):
    text = rendered(tmp_path, "bound", dpop=DPOP | KEPT, identity_header=SHARED)
    pod = objects(text)["Deployment", "iam-agent"]["spec"]["template"]["spec"]

    (volume,) = (one for one in pod["volumes"] if "iam-agent-secrets" in str(one))
    (mount,) = (one for one in pod["containers"][0]["volumeMounts"] if one["name"] == volume["name"])
    assert mount["mountPath"] == kubernetes.HOME
    alone = rendered(tmp_path, "plain", "--replicas", "1", identity_header=GATE)
    assert "iam-agent-secrets" not in alone


def test_the_pod_is_restricted_and_probed(tmp_path):
    pod = objects(rendered(tmp_path, "tls"))["Deployment", "iam-agent"]["spec"]["template"]["spec"]
    (agent,) = pod["containers"]

    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert agent["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    for purpose in ("startup", "readiness", "liveness"):
        words = agent[f"{purpose}Probe"]["exec"]["command"]
        assert words[3:6] == [SOCKET, "--for", purpose]
    sources = pod["volumes"][0]["projected"]["sources"]
    assert sources == [{"secret": {"name": "iam-policy"}}, {"secret": {"name": "iam-agent-tls"}}]


def test_the_agent_may_reach_the_ports_of_issuers_and_sts(tmp_path):
    sts = {"name": "aws", "endpoint": "https://sts.test:9443/", "hosts": ["sts.test"], "binding_value": "e"}
    found = objects(rendered(tmp_path, issuers=[ISSUER | {"jwks_uri": "https://idp.test:8443/"}], sts=[sts]))
    ports = found["NetworkPolicy", "iam-agent"]["spec"]["egress"][1]["ports"]
    assert [one["port"] for one in ports] == [443, 8443, 9443]


TEXTS = st.text() | st.sampled_from(
    [HOSTILE, "", "no", "1e3", " a\n", "a\n\n", "a\n \n", "\ta\n", "a\r\nb\n"]
)


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        TEXTS | st.integers() | st.booleans(), lambda one: st.lists(one) | st.dictionaries(TEXTS, one)
    )
)
def test_what_is_written_is_read_back(value):
    written = {"text": value, "more": [value]}

    assert yaml.safe_load("".join(kubernetes._block(written))) == written


@pytest.mark.parametrize(
    ("tables", "options", "words"),
    [
        ({"agent": {"listen": "127.0.0.1:9901"}}, (), "agent.listen: no address that HAProxy reaches"),
        ({"agent": {"listen": "unix:/run/a.sock"}}, (), "agent.listen: no address"),
        *(({"agent": AGENT | {"state_dir": name}}, (), f"state_dir: '{name}' cannot") for name in OUTSIDE),
        ({"agent": AGENT | {"control_socket": "c"}}, (), "agent.control_socket: 'c' cannot be written"),
        ({"agent": {"listen": ["unix:/a", "[::]:1"]}}, (), "agent.listen: '/a' cannot be written"),
        ({"audit": {"path": "a.jsonl"}}, (), "audit.path: 'a.jsonl' cannot be written in a pod. Write"),
        ({"agent": AGENT | {"tls": TLS}}, OWN_TLS, 'Add "unix:/run/iamroles/agent.sock" for them'),
        ({"agent": {**AGENT, "tls": TLS}}, (), "--agent-ca: is missing, and the policy has [agent.tls]"),
        ({}, OWN_TLS, "--agent-ca: is given, and the policy has no [agent.tls]"),
        ({"live": {"master_socket": "/run/m"}}, (), "live.master_socket: a pod has no such file"),
        ({"agent": {**AGENT, "tls": TLS | {"ca": "/etc/ca.pem"}}}, OWN_TLS, "agent.tls.ca: '/etc/ca.pem' is"),
        ({"backends": [{"name": "b", "streams": True}]}, (), "backends[0].streams: nothing would end"),
        (BOUND, (), "policy.json: issuers[0].bound: no token could be proven here. Give --client-ca"),
        (
            BOUND | {"dpop": DPOP | {"nonce": True}},
            (),
            "dpop.nonce_key: each pod would have nonces of its own",
        ),
        (
            BOUND | {"dpop": DPOP | KEPT | {"nonce_key": "/etc/n"}},
            (),
            "dpop.nonce_key: '/etc/n' is not beside",
        ),
        ({"identity_header": GATE}, (), "identity_header.secrets: 2 agents would have keys of their own"),
        (
            {"identity_header": SHARED | {"secrets": "a/b"}},
            (),
            "identity_header.secrets: 'a/b' is not beside",
        ),
        ({}, ("--client-ca", "x"), "--client-ca: 'x' is not NAMESPACE/SECRET"),
        ({"x-large": "a" * 1_000_000}, (), "bytes. A ConfigMap or Secret holds 1,000,000"),
        ({}, ("--namespace", "a: b"), "--namespace: 'a: b' is not a name"),
        ({}, ("--controller", "x"), "'x' is not NAMESPACE/CONFIGMAP"),
        ({}, ("--cluster-domain", "a b"), "is not a domain"),
        ({}, ("--image", "a\nb"), "is not an image"),
        ({}, ("--bind", ":1"), "--bind is the ingress controller's affair"),
        ({}, ("--agent", "a:1"), "--agent is the ingress controller's affair"),
        ({}, ("--realm", 'a"b'), "cannot stand in HAProxy's configuration"),
    ],
)
def test_what_no_pod_can_do_is_refused(tmp_path, tables, options, words):
    assert words in rendered(tmp_path, "plain", *options, code=2, **tables)
    assert not (tmp_path / "out").exists()


def test_options_of_the_cluster_go_with_it(tmp_path):
    (path := tmp_path / "policy.json").write_text(json.dumps(policy()))
    words = ["--config", str(path), "--output", str(tmp_path), "--image", "a"]

    assert "--image goes with --for" in CliRunner().invoke(render.render, words).output


# --- HAProxy, as the controller would run it ----------------------------------------------------------------


CONTROLLER = """\
global
  {global-config-snippet}
defaults
  mode http
  timeout connect 5s
  timeout client 20s
  timeout server 20s
  timeout http-request 5s
frontend http
  bind {bind}
  http-request set-src req.hdr(x-src) if {{ req.hdr(x-src) -m found }}
  http-request track-sc1 src table app if {{ req.hdr(x-theirs) -m found }}
  http-request set-var(txn.base) base
  http-request set-var(txn.path) path
  http-request set-var(txn.host) req.hdr(Host),field(1,:),lower
  http-request set-header X-Forwarded-Proto https if {{ ssl_fc }}
  {frontend-config-snippet}
  use_backend denied if {{ var(txn.path) -m beg /closed }}
  default_backend app
backend app
  stick-table type ip size 1k store gpc0
  acl feed path_end /feed
  {backend-config-snippet}
  http-request set-var-fmt(txn.seen) "%[req.hdr(x-iam-principal)] %[req.hdr(x-forwarded-host)]"
  http-request set-var-fmt(txn.seen) "%[var(txn.seen)]|%[req.hdr(authorization)]"
  http-request return status 200 content-type text/plain lf-string "%[path] %[var(txn.seen)]" if !feed
  server feed {feed}
backend denied
  http-request deny deny_status 429
"""


def events(connection):
    """Answer with a stream of events that has no end."""
    if connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        connection.recv(1)


def assembled(tmp_path, binary, bind, agent, of, *, feed="127.0.0.1:9"):
    """Write the controller's file and the files beside it, in two folders; return HAProxy's arguments."""
    release = ".".join(haproxies.version(binary).split(".")[:2])
    found = objects(rendered(tmp_path, of, "--haproxy", release))
    aux = tmp_path / "haproxy-aux.cfg"
    aux.mkdir(exist_ok=True)
    data = found["ConfigMap", "haproxy-kubernetes-ingress"]["data"]
    snippets = {
        key: text.rstrip().replace("\n", "\n  ").replace(kubernetes.AUX, str(aux))
        for key, text in data.items()
    }
    main = tmp_path / "haproxy.cfg"
    main.write_text(CONTROLLER.format(bind=bind, feed=feed, **snippets))
    for name, text in found["ConfigMap", "iam-haproxy"]["data"].items():
        known = re.sub("server-template .*", f"server agent {agent} check", text) if agent else text
        (aux / name).write_text(known.replace("/var/run/iam-peer.sock", str(tmp_path / "p")))
    return [binary, "-f", str(main), "-f", str(aux)]


def test_haproxy_and_agents_prove_who_they_are(tmp_path):
    found = objects(rendered(tmp_path, "tls", "--agent-name", "agent.test"))["ConfigMap", "iam-haproxy"]

    assert "verify required ca-file /tls/ca.pem verifyhost agent.test" in found["data"]["haproxy-aux.cfg"]


@pytest.mark.parametrize("of", ["plain", "mcp", "bound"])
@pytest.mark.parametrize("binary", binaries())
def test_haproxy_takes_it_without_a_warning(tmp_path, binary, of):
    words = assembled(tmp_path, binary, nowhere(), "", of)

    done = subprocess.run([*words, "-c", "-dW"], capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    texts = [(tmp_path / name).read_text() for name in ("haproxy.cfg", "haproxy-aux.cfg/iam.spoe")]
    said = [("IAM_" in text, "mcp" in text, "proof" in text) for text in texts]
    assert said == [(False, of == "mcp", of == "bound")] * 2


@pytest.mark.parametrize("of", ["plain", "bound"])
@pytest.mark.parametrize("binary", binaries())
def test_the_gate_judges_behind_the_controllers_rules(tmp_path, binary, of):
    bind, secure, mine, key = nowhere(), nowhere(), Certificate(), SigningKey.generate("ES256")
    (pem := tmp_path / "mine.pem").write_text(mine.pem)
    binds = f"{bind}\n  bind {secure} ssl crt {pem} ca-file {pem} verify optional"  # as the controller writes
    with contextlib.ExitStack() as stack:
        issuer = stack.enter_context(publishing()).url
        policy = world(issuer, dpop=DPOP)
        policy["issuers"][0]["bound"] = "accepted" if of == "bound" else "refused"
        ready = stack.enter_context(running(tmp_path, policy)).ready
        feed = stack.enter_context(listening(events))
        words = assembled(tmp_path, binary, binds, ready["address"], of, feed=feed)
        process = stack.enter_context(subprocess.Popen([*words, "-db"], stderr=subprocess.PIPE))
        stack.callback(process.terminate)

        def ask(path="/orders/1", token=token_of(issuer, sub="alice"), scheme="Bearer", tls=None, **headers):  # noqa: B008 - one token
            line = http.client.HTTPConnection(bind, timeout=10)
            if tls is not None:
                line = http.client.HTTPSConnection(secure, timeout=10, context=tls)
            with contextlib.closing(line):
                given = {"Authorization": f"{scheme} {token}"} if token else {}
                line.request("GET", path, headers=given | headers)
                answer = line.getresponse()
                return answer.status, answer.read().decode()

        def allowed():
            """HAProxy listens, and its health check holds the agent for up."""
            with contextlib.suppress(OSError):
                return ask() == (200, "/orders/1 alice |")

        until(allowed, 60)
        forged = {"X-IAM-Principal": "forged", "X-Forwarded-Host": "forged"}
        assert ask(**forged) == (200, "/orders/1 alice |")
        assert [ask(token="")[0], ask("/admin")[0], ask(token="x.y.z")[0]] == [401, 403, 401]
        assert ask("/orders/%C3%A9") == (200, "/orders/%C3%A9 alice |")
        assert ask("/orders/%61")[0] == 400, "the controller chose a backend by another path"
        assert ask("/orders//1")[0] == 400
        upgrade = {"Upgrade": "websocket", "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
        assert [ask(Connection="Upgrade", **upgrade)[0], ask("/orders/feed")[0]] == [403, 403]

        good, full = (200, 503) if of == "bound" else (401, 401)
        (tls := ssl._create_unverified_context()).load_cert_chain(pem)
        held = token_of(issuer, cnf={"x5t#S256": hashed(mine.der)})
        assert [ask(token=held, tls=tls)[0], ask(token=held)[0]] == [good, 401]
        forged = {"X-Src": "10.0.0.1", "Client-Cert": f":{''.join(mine.public.split()[2:-2])}:"}
        assert ask(token=held, **forged)[0] == 401, "the client chose its address"
        token = token_of(issuer, cnf={"jkt": thumbprint(jwk_of(key))})
        url, how = "https://api.example/orders/1", {"token": token, "scheme": "DPoP", "Host": "api.example"}
        once, stolen = ({"DPoP": proof(key, token, time.time(), url=url)} for _ in range(2))
        assert [ask(**how, **more)[0] for more in ({}, once, once)] == [401, good, 401]
        assert ask(**how, **stolen, **{"X-Theirs": "1"})[0] == full, "another table has the counter"
