"""Findings of a hostile review of the proxy's edge, on every HAProxy: hosts, queries, encodings, headers.

Clients here write bytes, because what is tested is what an HTTP library would never send.
"""

import json
import random
import re
import subprocess
from types import SimpleNamespace

import puppet_gate
import pytest
from invoking import ran
from puppet_gate import POLICY, Answer, ask, asked, connect, fields_of, h2, nobody_asked, raw, record

from iamroles_scenarios.checks.oracle.judge import segments
from iamroles_scenarios.stage import haproxies
from iamroles_scenarios.stage.images import Images

world = puppet_gate.world
AUTH = f"Authorization: Puppet {json.dumps(puppet_gate.YES)}"


def send(world, *lines):
    with connect(world) as connection:
        connection.sendall("\r\n".join([*lines, AUTH, "Connection: close", "", ""]).encode("latin-1"))
        return Answer(connection)


def differing(world, cases, right):
    """Ask all on one connection, and on another after a refusal; return cases whose answer is not right."""
    connection = connect(world)
    for case, request in cases:
        connection.sendall(request)
        try:
            answer = Answer(connection)
        except ConnectionError:
            answer = SimpleNamespace(status=0)
        if not right(case, answer):
            yield case, vars(answer)
        if answer.status != 200:
            connection.close()
            connection = connect(world)
    connection.close()


# --- the host -------------------------------------------------------------------------------------------

NO_ONE_HOST = [
    *(("GET http://admin.example.com/pub HTTP/1.0",), ("GET http://admin.example.com/pub HTTP/1.1",)),
    ("GET http://admin.example.com/pub HTTP/1.1", "Host:"),
    ("GET http://admin.example.com/pub HTTP/1.0", "Host: "),
    ("GET http://admin.example.com/pub HTTP/1.0", "Host: public.example.com"),
    ("GET http://admin.example.com/pub HTTP/1.1", "Host: public.example.com"),
    ("GET http://public.example.com@admin.example.com/pub HTTP/1.1", "Host: admin.example.com"),
    ("GET http://admin.example.com@public.example.com/pub HTTP/1.1", "Host: public.example.com"),
    *(("GET http:///pub HTTP/1.1", "Host: admin.example.com"), ("GET http:///pub HTTP/1.1", "Host:")),
    *(("GET http://admin.example.com?x=/pub HTTP/1.1", "Host: admin.example.com"), ("GET /pub HTTP/1.0",)),
    *(("GET /pub HTTP/1.1",), ("GET /pub HTTP/1.1", "Host:"), ("GET /pub HTTP/1.0", "Host: \t")),
    ("GET /pub HTTP/1.1", "Host: a.example", "Host: b.example"),
]


@pytest.mark.parametrize("lines", NO_ONE_HOST, ids=" ".join)
def test_a_request_without_one_host_reaches_nobody(world, lines):
    with nobody_asked(world):
        assert send(world, *lines).status == 400


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("target", ["/host/none", "http://admin.example.com/host/none"])
def test_the_record_says_that_the_host_was_the_reason(world, version, target):
    path = f"/host/none/{version}/{len(target)}"
    answer = send(world, f"GET {target.replace('/host/none', path)} HTTP/{version}")

    assert answer.challenge == 'Bearer realm="iam", error="invalid_request"'
    assert record(world, path=path)["reason"] == "host_ambiguous"


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("host", ["api.example", "API.example", "api.example:80"])
def test_an_absolute_target_goes_on_as_a_path_with_its_host(world, version, host):
    answer = send(world, f"GET http://api.example/orders/1?q=%zz&r=%%32 HTTP/{version}", f"Host: {host}")

    assert (answer.status, answer.echo["path"]) == (200, "/orders/1?q=%zz&r=%%32")
    assert answer.header("host") == [host]
    assert asked(world, answer.header("x-iam-request-id")[0])["host"] == host


@pytest.mark.parametrize(
    "fields",
    [
        fields_of("/pub", authority=None),
        fields_of("/pub", authority=""),
        fields_of("/pub", authority="", headers=[("host", "admin.example.com")]),
        fields_of("/pub", authority="public.example.com@admin.example.com"),
        fields_of("/pub", authority=None, headers=[("host", "")]),
    ],
    ids=["none", "empty", "empty-beside-host", "user", "empty-host"],
)
def test_http2_without_one_host_reaches_nobody(world, fields):
    with nobody_asked(world):
        assert puppet_gate.h2_exchange(world, fields)[0] in (400, 0)


@pytest.mark.parametrize(
    ("authority", "headers"),
    [("api.example", ()), ("api.example", [("host", "other.example")]), (None, [("host", "api.example")])],
)
def test_over_http2_the_server_gets_the_host_that_was_judged(world, authority, headers):
    status, body = puppet_gate.h2_exchange(world, fields_of(authority=authority, headers=headers))
    got = dict(json.loads(body)["headers"])

    assert (status, got["host"]) == (200, "api.example")
    assert asked(world, got["x-iam-request-id"])["host"] == "api.example"


def test_a_host_is_judged_whole(world):
    """Some releases let a list pass; the agent must see what the server will see."""
    answer = send(world, "GET /orders HTTP/1.1", "Host: admin.example.com, api.example")

    if answer.status != 400:
        assert answer.header("host") == ["admin.example.com, api.example"]
        request = answer.header("x-iam-request-id")[0]
        assert asked(world, request)["host"] == "admin.example.com, api.example"


# --- lengths --------------------------------------------------------------------------------------------

LIMITS = {"path": 4096, "host": 260, "method": 32, "role": 640}


def of_length(what, length, mark):
    """A request whose one text has this length."""
    texts = {"path": f"/{mark}", "host": "api.example", "method": "GET", "role": "reader"}
    long = {"path": f"/{mark}/".ljust(length, "a"), "host": "h" * length, "method": "M" * length}
    texts[what] = long.get(what, "r" * length)
    method, path, host, role = (texts[name] for name in ("method", "path", "host", "role"))
    return [f"{method} {path} HTTP/1.1", f"Host: {host}", f"X-IAM-Role: {role}"]


@pytest.mark.parametrize("what", LIMITS)
def test_a_text_of_the_limit_passes_and_one_byte_more_does_not(world, what):
    assert send(world, *of_length(what, LIMITS[what], f"limit-{what}")).status == 200
    with nobody_asked(world):
        assert send(world, *of_length(what, LIMITS[what] + 1, f"over-{what}")).status == 400

    found = world.haproxy.wait_log(lambda line: line["path"].startswith(f"/over-{what}"))
    assert found["reason"] == "text_too_long"


def test_a_path_is_measured_as_it_is_forwarded(world):
    assert ask(world, "/" + "%61" * 4095).status == 200
    assert ask(world, "/" + "%61" * 4096).status == 400


@pytest.mark.parametrize("what", LIMITS)
def test_whatever_a_client_sends_the_record_is_json_that_says_the_decision(world, what):
    """8.5 kB of quotes, which JSON doubles; the decision stands before any of them."""
    mark = f"flood-{what}"
    lines = of_length(what, 50, mark)
    text = '"' * 8500
    swollen = {
        "path": [f"GET /{mark}/{text} HTTP/1.1", *lines[1:]],
        "host": [lines[0], "Host: " + "h" * 8500, lines[2]],
        "method": ["M" * 8500 + f" /{mark} HTTP/1.1", *lines[1:]],
        "role": [*lines[:2], f"X-IAM-Role: {text}"],
    }[what]
    assert send(world, *swollen).status == 400
    record(world, request_id=ask(world, f"/after/{mark}").header("x-iam-request-id")[0])

    lines = world.haproxy.logs().splitlines()
    found = [line for line in lines if f"/{mark}" in line and "/after" not in line]
    assert found
    for line in found:
        assert len(line) < 4096
        assert json.loads(line)["status"] == 400
        names = "status", "reason", "principal", "method", "host", "path"
        places = [line.index(f'"{name}"') for name in names]
        assert places == sorted(places)
        assert places[2] < 600


# --- tokens in a path or a query ------------------------------------------------------------------------

HEADER = "eyAiYWxnIjogIlJTMjU2IiB9"  # JSON that begins with a space: not "eyJ"
PAYLOAD = "eyAic3ViIjogImFsaWNlIiwgImV4cCI6IDE3MDAwMDAwMDB9"
SIGNATURE = "c2lnbmF0dXJl" * 8
TOKEN = f"{HEADER}.{PAYLOAD}.{SIGNATURE}"


@pytest.mark.parametrize(
    "target",
    [
        *(f"/login/{TOKEN}", f"/login/{TOKEN}/x", f"/login/x={TOKEN}", f"/{TOKEN}/{TOKEN}"),
        *(f"/login/{HEADER}%2E{PAYLOAD}%2e{SIGNATURE}", f"/login/%65{TOKEN[1:]}"),
        *(f"/login/{TOKEN}.{SIGNATURE}.{SIGNATURE}", f"/login/{'a' * 980}/{TOKEN}", f"/login//{TOKEN}"),
        *(f"/login/%zz{TOKEN}", f"/login?access_token={TOKEN}", f"/login/%41?access_token={TOKEN}"),
        *(f"/login//?access_token={TOKEN}", f"http://api.example/login/{TOKEN}?id_token={TOKEN}"),
    ],
)
def test_a_token_in_the_target_is_not_in_the_record(world, target):
    with connect(world) as connection:
        port = connection.getsockname()[1]
        connection.sendall(raw(target))
        status = Answer(connection).status
    found = record(world, client_port=port)

    assert status in (200, 400)
    assert found["status"] == status
    assert found["path"].startswith("/")
    for part in (HEADER[1:], PAYLOAD, SIGNATURE[:24]):
        assert part not in json.dumps(found)


@pytest.mark.parametrize(
    "path",
    [
        *("/assets/application.min.js", "/orders/2026-11-25/report.final.pdf"),
        *("/org.springframework.boot/actuator.health.groups", "/downloads/haproxy-iam-roles-1.2.3.tar.gz"),
    ],
)
def test_a_path_that_is_no_token_is_recorded_as_sent(world, path):
    ask(world, path)

    assert record(world, path=path)["status"] == 200


# --- queries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/orders", "/%6frders", "/orders/caf%c3%a9"])
@pytest.mark.parametrize(
    "query",
    [
        *("", "?", "?x=%zz%%32%65", "?%61=%2e%7e", "??", "?a?b=%3f", "?%", "?q=100%", "?a=%2F%252e"),
        *("?next=//%2e%2e/x;y\\z", "?next=//x/../y;z", "?'\"<>`{}|^"),
    ],
)
def test_a_query_travels_byte_for_byte(world, path, query):
    answer = ask(world, path + query)

    assert answer.status == 200
    assert answer.echo["path"].removeprefix("/orders").removeprefix("/caf%C3%A9") == query


# --- OPTIONS * and CONNECT -------------------------------------------------------------------------------


def test_a_target_without_a_path_is_refused(world):
    with nobody_asked(world):
        assert h2(world, "*", method="OPTIONS") in (400, 0)
        assert ask(world, "*", method="OPTIONS").status == 400
        assert ask(world, "api.example:443", method="CONNECT", host="api.example:443").status == 400


def test_options_of_a_path_are_judged(world):
    assert h2(world, "/orders", method="OPTIONS") == 200
    assert ask(world, "/", method="OPTIONS").status == 200
    assert h2(world, "/") == 200


# --- encodings ------------------------------------------------------------------------------------------

BLANKS = "\u0020\u0085\u00a0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
MASKS = "\uff0e\uff0f\uff3c\uff1b\uff05\u2024\u2025\ufe52\ufe54\ufe68\ufe6a\ufe14\ufe30\u037e"
MASKS += "\u2100\u2101\u2105\u2106"


def encoded(text):
    return "".join(f"%{byte:02X}" for byte in (text if isinstance(text, bytes) else text.encode()))


@pytest.mark.parametrize("blank", BLANKS, ids=lambda blank: f"U+{ord(blank):04X}")
def test_a_blank_at_the_edge_of_a_segment_is_refused_and_inside_it_is_not(world, blank):
    for text in ("/..{}", "/..{}/x", "/a/{}..", "/{}", "/a/{}/b", "/a{}/b"):
        path = text.format(encoded(blank))
        assert ask(world, path).status == 400, path
        assert ask(world, path.lower()).status == 400, path
    assert ask(world, f"/a{encoded(blank)}b/c").status == 200


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"U+{ord(mask):04X}")
def test_a_letter_that_folds_into_a_delimiter_is_refused(world, mask):
    assert ask(world, f"/orders/{encoded(mask)}").status == 400
    assert ask(world, f"/orders/a{encoded(mask).lower()}b").status == 400


def judged(text):
    """Return what the rule says of a path of encoded bytes: these are UTF-8, or they are refused."""
    try:
        decoded = text.decode()
    except UnicodeDecodeError:
        return 400
    parts = decoded.split("/")
    blank = any(part != part.strip() or part.strip("\ufeff") != part for part in parts)
    return 400 if blank or set(decoded) & set(MASKS) else 200


def test_the_rules_for_utf8_agree_with_a_decoder(world):
    """Every first byte with every kind of what may follow, and 1,500 random runs; failures name the seed."""
    tails = [b"", b"a", b"\x80", b"\xbf", b"\x80\x80", b"\xbf\xbf", b"\x80\x80\x80", b"\x8f\xbf\xbf"]
    tails += [b"\x90\x80\x80", b"\x9f\xbf", b"\xa0\x80", b"\x80a", b"\x80" * 4, b"\xa0\x80\xc3\xa9", b"\xc3"]
    cases = [bytes([first]) + tail for first in range(0x80, 0x100) for tail in tails]
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    kinds = [*(sign.encode() for sign in "aé€😀\ud7ff\ufffd"), b"\x80", b"\xff"]
    cases += [
        b"".join(chance.choice(kinds) for _ in range(chance.randrange(1, 9)))[: chance.randrange(1, 20)]
        for _ in range(1500)
    ]
    asked = ((case, raw("/" + encoded(case) + chance.choice(["", "/x", "x"]))) for case in cases)

    wrong = differing(world, asked, lambda case, answer: answer.status == judged(case))
    assert list(wrong) == [], f"seed {seed}"


ALPHABET = [
    *("/", "/", "/", "a", "b.", ".", "..", "...", "//", "\\", ";", "~", "!$&'()*+,=:@", "-", "_"),
    *("%", "%2", "%zz", "%25", "%2525", "%2525%32%65", "%2e", "%2E", "%2f", "%5C", "%3b", "%41", "%7e"),
    *("%20", "%00", "%7f", "%0a", "%c3%a9", "%C3", "%A9", "%C0%AE", "%E2%82%AC", "%E2%80%8A", "%ef%bc%8e"),
    *("%ED%A0%80", "%F0%9F%98%80", "%F4%90%80%80"),
]


def test_what_the_gate_lets_through_is_what_an_independent_reading_takes(world):
    """2,500 random paths: served if and only if the oracle reads them, and forwarded as it reads them."""
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    paths = ["/" + "".join(chance.choices(ALPHABET, k=chance.randrange(1, 8))) for _ in range(2500)]

    def right(path, answer):
        expected = segments(path)
        if expected is None:
            return answer.status == 400
        return answer.status == 200 and segments(answer.echo["path"]) == expected

    wrong = differing(world, ((path, raw(path)) for path in paths), right)
    assert list(wrong) == [], f"seed {seed}"


# --- headers that speak of the client -------------------------------------------------------------------

SPOKEN = [
    *("Forwarded", "X-Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"),
    *("X-Forwarded-Prefix", "X_Forwarded_For", "X-Forwarded_User", "X-Host", "X-Original-Host"),
    *("X-Real-IP", "x_real_ip", "X-Client-IP", "X-Cluster-Client-IP", "True-Client-IP", "Client-IP"),
    *("CF-Connecting-IP", "X-Remote-User", "Remote-User", "REMOTE_USER"),
    *("X-Auth-User", "X-Authenticated-User", "X-WebAuth-User"),
]


def test_names_that_only_look_alike_pass(world):
    names = ("x-forwardedness", "not-forwarded", "x-real-ipv", "remote-users", "x-iamb", "x-request")
    answer = ask(world, headers=[f"{name}: alike" for name in names])

    assert [answer.header(name) for name in names] == [["alike"]] * len(names)


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        ("x-forwarded", {"-for": r"[0-9.]+", "-proto": "http", "-host": "api.example"}),
        ("forwarded", {"": r"for=[0-9.]+;proto=http"}),
    ],
)
def test_the_gate_says_it_where_the_operator_wants(world, choice, said):
    with world.stage.world(puppet_gate.puppet_spec(), POLICY, settings={"IAM_FORWARDED": choice}) as own:
        answer = ask(own, headers=[f"{name}: forged" for name in SPOKEN])

    assert "forged" not in answer.body.decode()
    for name, pattern in said.items():
        (value,) = answer.header(f"{choice}{name}")
        assert re.fullmatch(pattern, value)


def test_forwarded_has_each_ipv6_address_in_brackets(world):
    settings = {"IAM_FORWARDED": "forwarded", "IAM_BIND": "accept-proxy"}
    with world.stage.world(puppet_gate.puppet_spec(), POLICY, settings=settings) as own:
        for source in ("2002:c0a8:101::1", "::ffff:192.0.2.1", "2001:db8::1"):
            answer = send(own, f"PROXY TCP6 {source} ::1 5 6", "GET /orders/1 HTTP/1.1", "Host: api.example")
            assert answer.header("forwarded") == [f'for="[{source}]";proto=http']


# --- upgrades -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        ["Upgrade: websocket"],
        ["Upgrade: websocket", "Connection: keep-alive"],
        ["Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMAAABkAAQAAP__"],
        ["Upgrade: other, h2c", "Connection: Upgrade"],
        ["Upgrade: h2c", "Upgrade: other", "Connection: Upgrade"],
        ["Upgrade: other", "Upgrade: h2c", "Connection: Upgrade"],
        ["Upgrade: TLS/1.0", "Connection: Upgrade"],
    ],
    ids=lambda headers: " ".join(headers[:2]),
)
def test_an_upgrade_is_passed_on_only_as_asked_and_only_to_a_websocket(world, headers):
    answer = ask(world, headers=headers)

    assert answer.status == 200
    assert answer.header("upgrade") == []
    assert "upgrade" not in "".join(answer.header("connection")).lower()


def test_the_operator_names_the_upgrades(world):
    with world.stage.world(
        puppet_gate.puppet_spec(), POLICY, settings={"IAM_UPGRADES": "websocket other"}
    ) as own:
        answer = ask(own, headers=["Connection: x-iam-role, UPGRADE", "Upgrade: other"])

    assert answer.header("connection") == ["upgrade"]
    assert answer.header("upgrade") == ["other"]


# --- the files themselves -------------------------------------------------------------------------------

CHOICES = {
    "plain": ("", ""),
    "more": ("--agent unix:/run/agent.sock --bind :8080 --realm edge --maxconn 100", ""),
    "x-forwarded": ("", "IAM_FORWARDED=x-forwarded"),
    "forwarded": ("", "IAM_FORWARDED=forwarded IAM_THREADS=2"),
    "wrong": ("", "IAM_FORWARDED=yes"),
    "release": ("--haproxy {release}", ""),
}
"""Options of `policy render`, and the whole environment of HAProxy."""
TAKEN = """cd "$0"; program=$(command -v "$1"); for name in *; do
(cd $name; env -i $(cat env) "$program" -c -dW -f haproxy.cfg -f iam-routes.cfg; echo " $?") >$name.said 2>&1
done; tail -n 99 *.said"""


def taken(kind, haproxy, directory, engine):
    """Return what HAProxy says of the files in each folder, and its exit status, by the folder's name."""
    words = ["sh", "-c", TAKEN]
    if kind == "processes":
        said = subprocess.check_output([*words, directory, haproxy], text=True, timeout=60)
    else:
        volumes, image = {str(directory): {"bind": "/c"}}, Images(engine()).haproxy(haproxy)
        how = {"entrypoint": [], "user": "root", "volumes": volumes, "remove": True}
        said = engine().containers.run(image, [*words, "/c", "haproxy"], **how).decode()
    found = re.split(r"^==> (\S+)\.said <==$", said, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


@pytest.mark.parametrize("place", puppet_gate.places())
def test_the_files_are_taken_without_a_warning_unless_a_choice_does_not_exist(place, tmp_path, request):
    kind, haproxy = place
    version = haproxies.version(haproxy) if kind == "processes" else haproxy
    policy = {**POLICY, "backends": [{"name": "alpha", "servers": ["127.0.0.1:1"]}]}
    (tmp_path / "policy.json").write_text(json.dumps(policy))
    words = "policy render --agent 127.0.0.1:9901 --config"
    for choice, (options, env) in CHOICES.items():
        more = options.format(release=".".join(version.split(".")[:2])).split()
        ran(words, tmp_path / "policy.json", "--output", tmp_path / "c" / choice, *more)
        (tmp_path / "c" / choice / "env").write_text(env)

    said = taken(kind, haproxy, tmp_path / "c", lambda: request.getfixturevalue("engine"))

    assert "IAM_FORWARDED must be none, x-forwarded or forwarded" in said["wrong"]
    status = {choice: (text.split()[-1], "WARNING" in text) for choice, text in said.items()}
    assert status == dict.fromkeys(CHOICES, ("0", False)) | {"wrong": ("1", False)}, said
