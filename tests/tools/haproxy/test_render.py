"""Rendering HAProxy's configuration: what is written, what is refused, and that HAProxy takes it."""

import json
import os
import pwd
import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from invoking import finished
from policies import grant, text
from waiting import until

from iamroles_agent.base.config import Backend, BackendTls, Config
from iamroles_agent.base.errors import ConfigError
from iamroles_scenarios.engine.certificates import Authority
from iamroles_scenarios.stage import haproxies
from iamroles_tools.haproxy import render

ORDERS = {"name": "orders-ro", "servers": ["127.0.0.1:8001", "orders.internal:8001"]}
EXPORT = {"name": "export", "servers": ["[::1]:8002"]}
PROVEN = {"listen": "127.0.0.1:9901", "tls": {"certificate": "agent.pem", "ca": "ca.pem"}}
TLS = ("--agent-ca", "agent-ca.pem", "--agent-certificate", "proxy.pem")
SHIPPED = Path(render.__file__).parents[1] / "haproxy"


def policy_of(orders=ORDERS, export=EXPORT, **tables):
    rules = (grant(f"R{n}", "reader", "GET", f"/{n}", to["name"]) for n, to in enumerate((orders, export)))
    return text(*rules, backends=[orders, export], **tables)


def binaries():
    found = [haproxies.find(release) for release in haproxies.here()]
    return [pytest.param(binary, id=f"haproxy-{haproxies.version(binary)}") for binary in found]


DPOP = {"origins": ["https://api.example"], "algorithms": ["ES256", "EdDSA"]}
DPOP |= {"max_age": "30s", "leeway": "1.5s"}
FRONT = {"from": ["10.0.0.0/8", "2001:db8::/32"]}


def bound_policy(bound="required", **tables):
    """A policy of an issuer whose tokens may be bound to a key."""
    document = json.loads(policy_of(export=EXPORT | {"streams": True, "renew": True}))
    document["issuers"][0]["bound"] = bound
    return json.dumps(document | tables)


def run(tmp_path, *options, policy=None):
    path, output = tmp_path / "policy.json", tmp_path / "haproxy"
    path.write_text(policy or policy_of())
    arguments = ["--config", str(path), "--output", str(output), *options]
    return CliRunner().invoke(render.render, arguments), output


def routes(tmp_path, *options, **tables):
    _, output = run(tmp_path, *options, policy=policy_of(**tables))
    return (output / "iam-routes.cfg").read_text()


def check(binary, output):
    files = [word for name in ("haproxy.cfg", "iam-routes.cfg") for word in ("-f", str(output / name))]
    return finished(binary, "-c", *files, cwd="/")


def config(*backends):
    return Config(version=1, backends=[Backend(name=name, servers=servers) for name, servers in backends])


@pytest.mark.parametrize("binary", binaries())
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--agent", "10.0.0.1:9901", "--agent", "unix:/run/iamroles/agent.sock"],
        [
            *("--bind", "127.0.0.1:8443 accept-proxy name edge", "--realm", "the edge"),
            *("--maxconn", "100", "--timeout-processing", "900ms"),
        ],
    ],
)
def test_haproxy_takes_the_set_without_a_warning(tmp_path, binary, options):
    result, output = run(tmp_path, "--stats-socket", str(tmp_path / "s"), *options)
    assert result.exit_code == 0, result.output

    checked = check(binary, output)

    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stderr


@pytest.mark.parametrize("binary", binaries())
def test_a_release_that_closes_silent_websockets_says_so(tmp_path, binary):
    streaming = policy_of(export=EXPORT | {"streams": True})
    _, output = run(tmp_path, "--stats-socket", str(tmp_path / "s"), policy=streaming)

    said = check(binary, output).stderr

    old = tuple(map(int, haproxies.version(binary).split(".")[:2])) < (3, 0)
    assert ("silent for 30 s is closed: send pings" in said) is old


@pytest.mark.parametrize("release", render.RELEASES)
def test_a_rendering_for_a_release_has_nothing_for_others_and_starts_on_no_other(tmp_path, release):
    tables = {"export": EXPORT | {"streams": True, "renew": True}}
    result, output = run(
        tmp_path, "--haproxy", release, "--stats-socket", str(tmp_path / "s"), policy=policy_of(**tables)
    )
    assert result.exit_code == 0, result.output
    written = {path.name: path.read_text() for path in output.glob("*.cfg")}
    new = tuple(map(int, release.split("."))) >= (3, 1)

    left = re.findall(r"version_atleast\((.*?)\)", "".join(written.values()).partition("# The role")[2])
    assert all(exact.startswith(f"{release}.") for exact in left), left
    assert re.findall("mode (spop|tcp)", written["iam-routes.cfg"]) == ["spop" if new else "tcp"]
    assert ("timeout idle" in written["iam.spoe.cfg"]) is not new
    for (binary,) in (found.values for found in binaries()):
        same = haproxies.version(binary).startswith(f"{release}.")
        checked = check(binary, output)
        assert (checked.returncode == 0) is same, checked.stderr
        assert same == ("these files are for HAProxy" not in checked.stderr)


def test_a_condition_that_a_release_does_not_settle_is_left_to_haproxy():
    conditional = (
        ".if version_atleast(3.2.26)\na\n.elif version_atleast(2.9)\nb\n"
        ".elif version_atleast(2.7)\nc\n.endif\n"
        '.if streq("$A","x")\nd\n.elif !version_atleast(3.0)\ne\n.else\nf\n.endif\n'
    )

    assert render.for_release(conditional, "2.6") == '.if streq("$A","x")\nd\n.else\ne\n.endif\n'
    assert render.for_release(conditional, "3.0") == 'b\n.if streq("$A","x")\nd\n.else\nf\n.endif\n'
    newest = render.for_release(conditional, "3.2")
    assert newest.startswith(".if version_atleast(3.2.26)\na\n.else\nb\n.endif\n")


def test_no_stranger_may_write_the_directory_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        render.write({"haproxy.cfg": "\n"}, tmp_path / "new" / "iam")
    finally:
        os.umask(before)

    assert {found.stat().st_mode & 0o022 for found in tmp_path.rglob("*")} == {0}


def test_the_command_says_what_it_wrote(tmp_path):
    result, output = run(tmp_path)

    names = ["haproxy.cfg", "iam.spoe.cfg", "iam-routes.cfg", "iam-live.lua"]
    assert result.output.split() == [str(output / name) for name in names]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)


def test_settings_fill_in_the_presets_and_nothing_else(tmp_path):
    _, output = run(tmp_path, "--bind", ":443", "--realm", "edge")
    before, after = ((place / "haproxy.cfg").read_text().splitlines() for place in (SHIPPED, output))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]

    assert [line.split() for line in changed] == [
        ["presetenv", "IAM_BIND", '":443"'],
        ["presetenv", "IAM_REALM", '"edge"'],
    ]


def test_a_section_for_each_backend_and_a_server_for_each_address(tmp_path):
    found = routes(tmp_path, "--agent", "a:1", "--agent", "unix:/run/a.sock")

    names = re.findall(r"^backend (\S+)", found, re.MULTILINE)
    assert names == ["iam-agents", "route-orders-ro", "route-export"]
    assert re.findall(r"^    server (.*)", found, re.MULTILINE) == [
        *('agent-1 "${IAM_AGENT_1-a:1}"', 'agent-2 "${IAM_AGENT_2-unix@/run/a.sock}"'),
        *("orders-ro-1 127.0.0.1:8001", "orders-ro-2 orders.internal:8001", "export-1 [::1]:8002"),
    ]


@pytest.mark.parametrize(
    ("options", "policy", "named"),
    [
        (
            (),
            policy_of(ORDERS | {"name": "orders ro"}, EXPORT | {"servers": ["nowhere", "h:99999"]}),
            ("backends[0].name", "backends[1].servers[0]", "backends[1].servers[1]"),
        ),
        (
            ("--agent", "9901", "--agent", "h:0", "--realm", 'a"b'),
            policy_of(export=EXPORT | {"servers": []}),
            ("backends[1].servers", "'9901' is not an address", "'h:0' is not", "--realm"),
        ),
        ((), '{"version": 1, "colour": 1}', ("policy.json",)),
        (
            ("--agent", "a:1", "--agent", "b:1"),
            policy_of(identity_header={"issuer": "https://gate.test"}),
            ("identity_header.secrets: 2 agents would have keys of their own",),
        ),
        ((), bound_policy(agent=PROVEN), ("--agent-ca: is missing, and the policy has [agent.tls]",)),
        (("--agent", "a:1", "--realm", "%[src]"), None, ("--realm: HAProxy reads a format in '%[src]'",)),
        *(
            (("--agent", "a:1", "--timeout-processing", text), None, ("not a time",))
            for text in ("0", "00ms", "999999999d")
        ),
        (("--agent", "unix:/run/a.sock", "--chroot", "/var/lib/ha"), None, ("/run/a.sock is not below",)),
        (("--agent", "unix:/run/a.sock", "--chroot", ""), None, ("--chroot: '' cannot stand",)),
        *(
            (("--agent", f"unix:/var{path}", "--chroot", "/var"), None, (f"/var{path} is not below /var,",))
            for path in ("", "/", "/../a", "/a/../../b")
        ),
        (("--agent", f"unix:/{'a' * 97}"), None, ("has 98 bytes as HAProxy sees it, and HAProxy takes 97",)),
        (("--agent", "10.0.0.1:9901", *TLS), None, ("--agent-name: 10.0.0.1:9901 is not a DNS name",)),
        (("--agent", "[::1]:9901", *TLS), None, ("is not a DNS name",)),
        (("--agent", "a:1", *TLS[:2]), None, ("of --agent-ca and --agent-certificate only one",)),
        (("--agent", "a:1", *TLS, "--agent-name", "a verify none"), None, ("cannot stand in HAProxy's",)),
    ],
)
def test_every_problem_is_named_at_once_and_nothing_is_written(tmp_path, options, policy, named):
    result, output = run(tmp_path, *options, policy=policy)

    assert (result.exit_code, output.exists()) == (2, False)
    assert [words for words in named if words not in result.output] == []
    assert not options or len(result.output.splitlines()) == len(named)


def test_no_more_connections_than_a_process_can_hold(tmp_path):
    result, output = run(tmp_path, "--maxconn", "99999999999")

    assert (result.exit_code, output.exists()) == (2, False)
    assert "1<=x<=500000000" in result.output


def test_a_policy_s_name_need_not_be_utf_8(tmp_path):
    named = render.configuration(config(("n", ["h:1"])), render.Settings(("a:1",)), source="\udcff.toml")
    render.write(named, tmp_path)

    assert "from \\udcff.toml:" in (tmp_path / "iam-routes.cfg").read_text()


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "haproxy").mkdir()
    (tmp_path / "haproxy" / "haproxy.cfg").mkdir()

    result, output = run(tmp_path)

    assert result.exit_code == 3
    assert str(output) in result.output
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


@settings(max_examples=200)
@given(st.text(max_size=12), st.text(max_size=16), st.text(max_size=16))
def test_nothing_in_a_policy_can_add_a_line(name, server, agent):
    """Either a problem, or a configuration of as many lines and words as any other of its shape."""
    plain = render.configuration(config(("n", ["h:1"])), render.Settings(("a:1",)))["iam-routes.cfg"]
    try:
        texts = render.configuration(config((name, [server])), render.Settings((agent,)))
    except ConfigError:
        return

    words = [len(line.split()) for line in texts["iam-routes.cfg"].splitlines()]
    assert words == [len(line.split()) for line in plain.splitlines()]


def test_a_backend_that_speaks_tls_is_verified_by_name_also_by_the_health_check(tmp_path):
    tls = {"ca": "/etc/iam/ca.pem", "certificate": "/etc/iam/gate.pem", "name": "export.internal"}
    found = routes(tmp_path, export=EXPORT | {"tls": tls})
    (line,) = [line for line in found.splitlines() if "export-1" in line]

    assert line.split()[2:] == [
        *("[::1]:8002", "ssl", "verify", "required", "ca-file", "/etc/iam/ca.pem"),
        *("sni", "str(export.internal)", "check-sni", "export.internal", "verifyhost", "export.internal"),
        *("crt", "/etc/iam/gate.pem"),
    ]


def test_without_a_name_each_server_s_own_is_asked_for(tmp_path):
    named = {"servers": ["a.internal:1", "b.internal:1"], "tls": {"ca": "/etc/iam/ca.pem"}}
    found = routes(tmp_path, orders=ORDERS | named)

    assert re.findall(r"verifyhost (\S+)", found) == ["a.internal", "b.internal"]
    assert "crt" not in found


def test_tls_of_a_configuration_made_in_code_cannot_add_words():
    backend = Backend(name="n", servers=["h:1"], tls=BackendTls(ca="/ca.pem verify none"))

    with pytest.raises(ConfigError, match=r"backends\[0\].tls.ca"):
        render.configuration(Config(version=1, backends=[backend]), render.Settings(("a:1",)))


LONGEST = "/" + "a" * 96


@pytest.mark.parametrize("binary", binaries())
def test_an_agent_on_tcp_must_prove_its_name_and_a_unix_socket_is_seen_from_the_chroot(tmp_path, binary):
    agents = "--agent", "agent:1", "--agent", "10.0.0.1:2", "--agent", f"unix:/var/lib/haproxy{LONGEST}"
    result, output = run(tmp_path, *agents, *TLS, "--agent-name", "a.test", "--chroot", "/var/lib/haproxy")
    assert result.exit_code == 0, result.output
    authority = Authority()
    (output / "agent-ca.pem").write_text(authority.public)
    (output / "proxy.pem").write_text(authority.issue("proxy.test"))

    found = (output / "iam-routes.cfg").read_text()
    words = " ssl ssl-min-ver TLSv1.2 verify required ca-file agent-ca.pem verifyhost a.test crt proxy.pem"
    servers = [f'-1 "${{IAM_AGENT_1-agent:1}}"{words}', f'-2 "${{IAM_AGENT_2-10.0.0.1:2}}"{words}']
    servers.append(f'-3 "${{IAM_AGENT_3-unix@{LONGEST}}}"')
    assert re.findall(r"^    server agent(.*)", found, re.MULTILINE) == servers
    assert check(binary, output).returncode == 0


def test_the_first_address_of_the_agent_is_asked_by_default(tmp_path):
    policy = json.loads(policy_of()) | {"agent": {"listen": ["unix:/run/a.sock", "127.0.0.1:9901"]}}
    _, output = run(tmp_path, policy=json.dumps(policy))

    assert re.findall("_1-(.*)}", (output / "iam-routes.cfg").read_text()) == ["unix@/run/a.sock"]


PEER = "unix@/var/lib/haproxy/var/lib/haproxy/iam-peer.sock mode 600 user haproxy"
BOUND = {"IAM_BOUND": "yes", "IAM_PEER": PEER, "IAM_RENEW": "yes"}
PROOFS = {**BOUND, "IAM_DPOP": "ES256 EdDSA"}


@pytest.mark.parametrize(
    ("tables", "right"),
    [
        ({}, BOUND),
        ({"client_certificate": FRONT}, {**BOUND, "IAM_CERTIFICATE_FROM": "10.0.0.0/8 2001:db8::/32"}),
        ({"dpop": DPOP}, {**PROOFS, "IAM_REPLAY": "33000ms"}),
        ({"dpop": DPOP | {"replay": "none"}}, PROOFS),
    ],
)
def test_what_a_policy_says_of_bound_tokens_is_preset_and_haproxy_takes_it(
    tmp_path, tables, right, monkeypatch
):
    monkeypatch.setenv("IAM_PEER", f"unix@{tmp_path}/p mode 600")  # this host may have no user `haproxy`
    policy = bound_policy(**tables)
    options = "--stats-socket", str(tmp_path / "s"), "--chroot", "/var/lib/haproxy"
    result, output = run(tmp_path, *options, "--agent", "a:1", policy=policy)
    assert result.exit_code == 0, result.output

    text = (output / "haproxy.cfg").read_text()
    assert 'setenv    IAM_MCP                "no"' in text
    found = dict(re.findall(r'setenv +(IAM_(?:BOUND|CERTIFICATE_FROM|DPOP|REPLAY|PEER|RENEW)) +"(.*)"', text))
    assert found == dict.fromkeys(found, "none") | right
    routes = (output / "iam-routes.cfg").read_text()
    counter = "3" if "IAM_REPLAY" in right else "1"  # sc1 counts proofs
    assert re.findall(r"track-sc(\d)|sc-set-gpt0\((\d)\)", routes) == [(counter, ""), ("", counter)]
    for (binary,) in (one.values for one in binaries()):
        checked = check(binary, output)
        assert (checked.returncode, "WARNING" in checked.stderr) == (0, False), checked.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot takes root: `.ci/run` plays it")
@pytest.mark.parametrize("binary", binaries())
def test_a_chrooted_haproxy_hands_its_proofs_over_where_its_user_alone_can_connect(binary):
    with TemporaryDirectory() as top:
        jail, master, stats, cfg = (Path(top, name) for name in ("j", "m", "s", "x.cfg"))
        link = jail / jail.relative_to("/")
        link.parent.mkdir(parents=True)
        link.symlink_to("/".join([".."] * (len(link.parts) - len(jail.parts) - 1)))
        for path in (Path(top), jail):
            path.chmod(0o755)
        peer = render._peer(str(jail)).replace("user haproxy", "user nobody")
        cfg.write_text(
            f"global\n localpeer local\n chroot {jail}\n user nobody\n stats socket {stats} level admin\n"
            "defaults\n timeout connect 1s\n timeout client 1s\n timeout server 1s\n"
            "backend t\n stick-table type string len 44 size 1k expire 1h store gpc0 peers p\n"
            f"peers p\n bind {peer}\n server local\n"
        )
        with subprocess.Popen([binary, "-W", "-S", str(master), "-f", str(cfg)]) as haproxy:
            try:
                # Up to 2.8 a worker does not send its table within 5 s of a cold start.
                until(lambda: re.search(r"Uptime_sec: ([6-9]|\d\d)", runtime(stats, "show info")))
                runtime(stats, "set table t key abc data.gpc0 1")
                socket_file = (jail / "iam-peer.sock").stat()
                assert socket_file.st_mode & 0o777 == 0o600
                assert socket_file.st_uid == pwd.getpwnam("nobody").pw_uid
                pid = re.search(r"Pid: (\d+)", runtime(stats, "show info"))[1]
                runtime(master, "reload")
                until(lambda: f"Pid: {pid}\n" not in runtime(stats, "show info"))
                until(lambda: "key=abc" in runtime(stats, "show table t"))
            finally:
                haproxy.kill()  # its workers end with it


def runtime(path, command):
    """Ask a Runtime API or the master CLI; "" while it is not there."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(f"{command}\n".encode())
        return b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    return ""


def test_a_policy_without_a_bound_issuer_gets_the_shipped_files_whatever_else_it_says(tmp_path):
    policy = bound_policy("refused", dpop=DPOP, client_certificate=FRONT)
    result, output = run(tmp_path, policy=policy)

    assert result.exit_code == 0, result.output
    for name in ("haproxy.cfg", "iam.spoe.cfg"):
        assert (output / name).read_text() == re.sub('(RENEW +")no', r"\1yes", (SHIPPED / name).read_text())
    assert "track-sc1" in (output / "iam-routes.cfg").read_text()
