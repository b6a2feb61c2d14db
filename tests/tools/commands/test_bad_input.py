"""Wrong input at every command: a sentence that names it and exit code 2, no traceback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from invoking import finished

from iamroles_agent.main import main

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "reference" / "examples" / "policy.toml"
DEEP = "[" * 100_000
FILES = {"deep.toml": f"a = {DEEP}".encode(), "deep.json": DEEP.encode(), "junk": b"\x00\xff" * 99}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("wrong")
    for name, content in FILES.items():
        (found / name).write_bytes(content)
    key = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (found / "key.pem").write_bytes(key)
    return found


def run(*arguments):
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "command",
    [
        *("policy check @", f"policy explain {EXAMPLE} GET /x --claims @", "revoke list --config @"),
        *("sessions --config @", "agent status --config @", "token mint --key key.pem --recipe @"),
        *("token mint --key @", "audit key @ --name a", "conformance run --agent @"),
        *("conformance run --agent-address 127.0.0.1:1 --allowed @", "conformance report @"),
        *("conformance fuzz --replay @", "conformance flakes --save @ --check wire.hello.version"),
        *("load run --slo @", "demo --agent @", "bench agent --docs @", "bench gate --docs @"),
        *("load report @", "load timeline fire.keys --agent @"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(place, name, command, monkeypatch):
    monkeypatch.chdir(place)
    done = run(*command.replace("@", name).split())

    assert (done.exit_code, name in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("conformance run --check wire.hello --time-scale nan", "not a number"),
        ("conformance run --check wire.hello --report junk", "is a file"),
        ("conformance soak --page /nowhere/page.html", "cannot be written: /nowhere"),
        ("conformance run --agent-address 127.0.0.1:99999", "write host:port"),
        ("conformance fuzz --save /nowhere/kept.json", "cannot be written: /nowhere"),
        ("conformance fuzz --count 0", "0 is not in the range"),
        ("conformance oracle --cases -5", "-5 is not in the range"),
        ("conformance selftest --jobs 0", "0 is not in the range"),
        ("conformance verify-report missing.tar.gz", "does not exist"),
        ("load run --rate nan", "not a number"),
        ("load run --agent-address nonsense", "write host:port"),
        ("load run --header a:b", "--header goes with --url"),
        ("load run --straight --argument a=b", "--argument goes with --agent-address"),
        ("token inspect --at nan x.y.z", "not a time"),
        (f"policy explain {EXAMPLE} GET /x --at 1e400", "is not in the range"),
        ("audit key new.pem --name a+b", "without blanks"),
        ("audit verify --key x+y+z junk", "not base64"),
        (f"policy render --config {EXAMPLE} --output out --timeout-processing soon", "not a time"),
        *(
            (f"revoke add --config {EXAMPLE} --file r.toml {options}", said)
            for options, said in (
                *(("", "revoke: names nobody: give credential"), ("--principal=", "matches nobody")),
                *(("--role raeder", "did you mean 'reader'?"), ("--session=a\x1bb", "matches nobody")),
                *(("--credential 0123456789abcdef", "sha256:"), ("--issuer x --role arn:x", "--role: not")),
                ("--role reader --issued-before x", "revoke: --issued-before: a moment is RFC 3339"),
                ("--role reader --issued-before 1700000000000", "revoke: --issued-before: it is not bet"),
            )
        ),
    ],
)
def test_an_option_that_cannot_be_meant_is_refused(place, command, said, monkeypatch):
    monkeypatch.chdir(place)
    done = run(*command.split())

    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert {found.name for found in place.iterdir()} == {*FILES, "key.pem"}


def test_a_file_s_name_need_not_be_utf_8(tmp_path):
    policy, page = tmp_path / "caf\udce9.toml", tmp_path / "page.html"
    policy.write_text(EXAMPLE.read_text())

    assert "caf\\udce9.toml: good" in run("policy", "check", str(policy)).output
    run("policy", "matrix", "--html", str(page), str(policy))
    assert "caf\\udce9.toml" in page.read_text()


def test_who_revokes_by_arn_or_without_a_policy_is_not_hindered(place, tmp_path):
    arn = "arn:aws:iam::111111111111:role/of-nobody"
    for config in (EXAMPLE, place / "junk"):
        done = run("revoke", "add", f"--config={config}", f"--file={tmp_path / 'r.toml'}", f"--role={arn}")
        assert done.exit_code == 0, done.output
    done = run("revoke", "add", f"--config={place / 'junk'}", f"--file={tmp_path / 'r.toml'}", "--role=staff")
    assert done.exit_code == 0, done.output


def test_a_file_without_a_record_is_no_answer_of_the_audit(place):
    done = run("audit", "query", str(place / "junk"), "--who", "alice")

    assert f"note: {place / 'junk'}: holds no record of an audit" in done.output


def test_a_query_does_not_change_what_a_path_reaches():
    plain, queried = (
        run("policy", "explain", str(EXAMPLE), "GET", f"shop.example.com/orders{query}", "--role", "reader")
        for query in ("", "?page=2;x=//")
    )

    assert plain.output == queried.output
    assert "ALLOW" in plain.output


@pytest.mark.parametrize("command", ["policy schema", "conformance spec"])
def test_a_full_disk_is_no_finding(command):
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        pipes = {"capture_output": False, "stdout": full, "stderr": subprocess.PIPE}
        done = finished(sys.executable, "-m", "iamroles_agent", *command.split(), **pipes)

    assert (done.returncode, done.stderr) == (2, "Error: the output: No space left on device\n")


def test_ctrl_c_is_no_finding(tmp_path):
    os.mkfifo(pipe := tmp_path / "p")
    # A job in the background of a shell ignores SIGINT, and so would its children.
    heeds = ["env", "--default-signal=INT", sys.executable]
    command = [*heeds, "-m", "iamroles_agent", "audit", "verify", str(pipe)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        pipe.open("w"),  # opened when the command reads it
    ):
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)

    assert (process.returncode, said) == (130, "interrupted\n")


def test_a_shortened_report_says_all_that_it_lacks(tmp_path):
    [whole] = ROOT.glob("conformance/reports/haproxyspoa/*/report.json")
    report = json.loads(whole.read_text())
    for key in ("seconds", "stage", "requirements"):
        del report[key]
    for check in report["checks"]:
        check.pop("title", None)
    del report["product"]["version"]
    report["checks"].append(5)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    done = run("conformance", "report", str(path))

    lacks = "lacks product.version, seconds, stage, requirements, checks[].title"
    assert (done.exit_code, lacks in done.output) == (2, True), done.output


@pytest.mark.parametrize("args", [["conformance", "list"], ["conformance", "run"], ["demo"], ["load", "run"]])
def test_a_base_install_names_the_extra(args):
    code = "import sys; sys.modules['botocore'] = None; from iamroles_agent.main import main; main()"
    done = finished(sys.executable, "-c", code, *args)

    extra = "load" if args[0] == "load" else "conformance"
    remedy = f"needs the package 'botocore': pip install 'haproxy-iam-roles[{extra}]'"
    assert (done.returncode, done.stderr) == (1, f"Error: `iamroles {args[0]}` {remedy}\n")
