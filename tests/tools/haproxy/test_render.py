"""Rendering HAProxy's configuration: what is written, what is refused, and that HAProxy takes it."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from iamroles_agent.base.config import Backend, BackendTls, Config
from iamroles_agent.base.errors import ConfigError
from iamroles_scenarios.base.errors import StageError
from iamroles_scenarios.stage import haproxies
from iamroles_tools.haproxy import render

POLICY = """
version = 1
[[issuers]]
name = "corp"
issuer = "https://idp.example"
audiences = ["edge"]
algorithms = ["RS256"]
accounts = ["111111111111"]
[[roles]]
name = "reader"
arn = "arn:aws:iam::111111111111:role/reader"
[[backends]]
name = "orders-ro"
servers = ["127.0.0.1:8001", "orders.internal:8001"]
[[backends]]
name = "export"
servers = ["[::1]:8002"]
[[grants]]
id = "R1"
roles = ["reader"]
methods = ["GET"]
path = "/orders"
backend = "orders-ro"
[[grants]]
id = "R2"
roles = ["reader"]
methods = ["GET"]
path = "/export"
backend = "export"
"""


def binaries():
    found = {}
    for choice in ("path", "wheel"):
        try:
            binary = haproxies.find(choice)
        except StageError:
            continue
        found.setdefault(haproxies.version(binary), binary)
    return [pytest.param(binary, id=f"haproxy-{version}") for version, binary in found.items()]


def run(tmp_path, *options, policy=POLICY):
    path = tmp_path / "policy.toml"
    path.write_text(policy)
    output = tmp_path / "haproxy"
    return CliRunner().invoke(
        render.render, ["--config", str(path), "--output", str(output), *options]
    ), output


def check(binary, output):
    files = [word for name in ("haproxy.cfg", "iam-routes.cfg") for word in ("-f", str(output / name))]
    return subprocess.run([binary, "-c", *files], capture_output=True, text=True, check=False, cwd="/")


def config(*backends):
    return Config(version=1, backends=[Backend(name=name, servers=servers) for name, servers in backends])


@pytest.mark.parametrize("binary", binaries())
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--agent", "10.0.0.1:9901", "--agent", "unix:/run/iamroles/agent.sock"],
        [
            "--bind",
            "127.0.0.1:8443 accept-proxy name edge",
            "--realm",
            "the edge",
            "--maxconn",
            "100",
            "--timeout-processing",
            "900ms",
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
    streaming = POLICY.replace('name = "export"', 'name = "export"\nstreams = true')
    _, output = run(tmp_path, "--stats-socket", str(tmp_path / "s"), policy=streaming)

    said = check(binary, output).stderr

    old = tuple(map(int, haproxies.version(binary).split(".")[:2])) < (3, 0)
    assert ("silent for 30 s is closed: send pings" in said) is old


def test_the_command_says_what_it_wrote(tmp_path):
    result, output = run(tmp_path)

    assert result.output.split() == [
        str(output / name) for name in ("haproxy.cfg", "iam.spoe.cfg", "iam-routes.cfg", "iam-live.lua")
    ]
    written = sorted(path.name for path in output.iterdir())
    assert written == ["haproxy.cfg", "iam-live.lua", "iam-routes.cfg", "iam.spoe.cfg"]


def test_the_static_files_are_the_shipped_ones(tmp_path):
    _, output = run(tmp_path)
    shipped = Path(render.__file__).parents[1] / "haproxy"

    assert (output / "haproxy.cfg").read_text() == (shipped / "haproxy.cfg").read_text()
    assert (output / "iam.spoe.cfg").read_text() == (shipped / "iam.spoe.cfg").read_text()


def test_settings_fill_in_the_presets_and_nothing_else(tmp_path):
    _, output = run(tmp_path, "--bind", ":443", "--realm", "edge")
    shipped = (Path(render.__file__).parents[1] / "haproxy" / "haproxy.cfg").read_text().splitlines()
    changed = [
        new
        for old, new in zip(shipped, (output / "haproxy.cfg").read_text().splitlines(), strict=True)
        if old != new
    ]

    assert [line.split() for line in changed] == [
        ["presetenv", "IAM_BIND", '":443"'],
        ["presetenv", "IAM_REALM", '"edge"'],
    ]


def test_a_section_for_each_backend_and_a_server_for_each_address(tmp_path):
    _, output = run(tmp_path, "--agent", "a:1", "--agent", "unix:/run/a.sock")
    text = (output / "iam-routes.cfg").read_text()

    assert re.findall(r"^backend (\S+)", text, re.MULTILINE) == [
        "iam-agents",
        "route-orders-ro",
        "route-export",
    ]
    assert re.findall(r"^    server (.*)", text, re.MULTILINE) == [
        'agent-1 "${IAM_AGENT_1}"',
        'agent-2 "${IAM_AGENT_2}"',
        "orders-ro-1 127.0.0.1:8001",
        "orders-ro-2 orders.internal:8001",
        "export-1 [::1]:8002",
    ]
    assert 'presetenv IAM_AGENT_2 "unix@/run/a.sock"' in text


def test_every_problem_of_the_policy_is_named_at_once(tmp_path):
    policy = POLICY.replace('"orders-ro"', '"orders ro"').replace('"[::1]:8002"', '"nowhere", "h:99999"')

    result, output = run(tmp_path, policy=policy)

    assert result.exit_code == 2
    for key in ("backends[0].name", "backends[1].servers[0]", "backends[1].servers[1]"):
        assert key in result.output
    assert not output.exists()


def test_every_problem_of_the_options_is_named_at_once(tmp_path):
    policy = POLICY.replace('servers = ["[::1]:8002"]', "servers = []")

    result, output = run(tmp_path, "--agent", "9901", "--agent", "h:0", "--realm", 'a"b', policy=policy)

    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 4
    for words in ("backends[1].servers", "'9901' is not an address", "'h:0' is not", "--realm"):
        assert words in result.output
    assert not output.exists()


def test_a_broken_policy_writes_nothing(tmp_path):
    result, output = run(tmp_path, policy="version = 1\ncolour = 1\n")

    assert result.exit_code == 2
    assert "policy.toml" in result.output
    assert not output.exists()


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


TLS = """servers = ["[::1]:8002"]
tls = { ca = "/etc/iam/ca.pem", certificate = "/etc/iam/gate.pem", name = "export.internal" }"""


def test_a_backend_that_speaks_tls_is_verified_by_name_also_by_the_health_check(tmp_path):
    _, output = run(tmp_path, policy=POLICY.replace('servers = ["[::1]:8002"]', TLS))
    (line,) = [line for line in (output / "iam-routes.cfg").read_text().splitlines() if "export-1" in line]

    assert line.split()[2:] == [
        *(
            "[::1]:8002",
            "ssl",
            "verify",
            "required",
            "ca-file",
            "/etc/iam/ca.pem",
            "sni",
            "str(export.internal)",
        ),
        *("check-sni", "export.internal", "verifyhost", "export.internal", "crt", "/etc/iam/gate.pem"),
    ]


def test_without_a_name_each_server_s_own_is_asked_for(tmp_path):
    servers = 'servers = ["127.0.0.1:8001", "orders.internal:8001"]'
    named = 'servers = ["a.internal:1", "b.internal:1"]\ntls = { ca = "/etc/iam/ca.pem" }'
    _, output = run(tmp_path, policy=POLICY.replace(servers, named))

    text = (output / "iam-routes.cfg").read_text()
    assert re.findall(r"verifyhost (\S+)", text) == ["a.internal", "b.internal"]
    assert "crt" not in text


def test_tls_of_a_configuration_made_in_code_cannot_add_words():
    tls = BackendTls(ca="/ca.pem verify none")
    backend = Backend(name="n", servers=["h:1"], tls=tls)

    with pytest.raises(ConfigError, match=r"backends\[0\].tls.ca"):
        render.configuration(Config(version=1, backends=[backend]), render.Settings(("a:1",)))
