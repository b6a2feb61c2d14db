"""The derived checks leave nothing out: each argument, key, claim, reason, variable and event has its row.

SPEC.md and the published schema are the two witnesses; whatever they have and the tables have not fails here.
"""

import copy
import inspect
import re
from pathlib import Path

import pytest

from iamroles_scenarios.checks.derived import (
    arguments,
    certificates,
    claims,
    credentials,
    exact,
    issuers,
    key_sets,
    reasons,
    reloads,
    rules,
    schema,
    seconds,
    signatures,
    waits,
)
from iamroles_scenarios.checks.live import generated as live
from iamroles_scenarios.checks.oracle.judge import judge, load_error
from iamroles_scenarios.checks.plan import plan
from iamroles_scenarios.checks.proxy import asked, misbehaving, shapes
from iamroles_scenarios.declarations.scenario import WorldSpec, policy_of
from iamroles_scenarios.declarations.tables import ARN, policy_schema, table
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.certificates import Authority
from iamroles_scenarios.jose import SigningKey
from iamroles_scenarios.mock.faults import ENDLESS, KINDS

ROOT = Path(__file__).parents[2]
SPEC = (ROOT / "conformance" / "SPEC.md").read_text(encoding="utf-8")
NOW = 1_800_000_000
BASE = {
    "version": 1,
    "issuers": [{"name": "corp", "scope_claim": "scope", "scope_required": False}],
    "roles": [{"name": name, "arn": f"{ARN}{name}"} for name in ("kiosk", "clerk", "guard")],
}


def _section(number):
    return SPEC.split(f'<a id="c-{number}"></a>')[1].split("\n## ")[0]


def _rows(text):
    """Cells of the table that a text begins with."""
    for row in text.split("\n\n", maxsplit=1)[0].splitlines()[2:]:
        yield [cell.strip(" `") for cell in row.split("|")[1:-1]]


def _table(section, head):
    """Rows of a table of SPEC.md, by what its head begins with."""
    return _rows(head + _section(section).partition(head)[2])


# --- every one has a row ------------------------------------------------------------------------------------


def test_every_argument_of_a_question_has_values():
    told, message = {}, ""
    for first, argument, *_ in _table(2, "| message |"):
        message = first or message
        told.setdefault(message, set()).add(argument)

    assert told == {"iam-check": set(arguments.ARGUMENTS), "iam-context": set(arguments.CONTEXT)}


def test_every_variable_of_an_answer_has_a_row():
    assert list(answers.VARIABLES) == [name for name, *_ in _table(3, "| variable |") if name]


def test_every_variable_of_an_answer_is_changed_before_the_proxy():
    changed = {name for row, _ in misbehaving.ROWS["verdicts"].values() for name in row}

    # The proxy keeps the ticket for the agent, whose own affair it is.
    assert set(answers.VARIABLES) - changed == {"ticket"}


def test_every_header_that_the_contract_removes_is_forged():
    said = SPEC.split('<a id="c-1-2"></a>')[1].split("\n\n")[0]
    names = {name.replace("*", "User") for name in re.findall(r"`([A-Z][A-Za-z*-]+)`", said)}
    forged = {name.replace("_", "-") for name in table("shapes")["forged"]}

    assert names <= forged


def test_every_kind_of_refusal_has_a_credential_in_each_shape():
    statuses = {row["status"] for row in shapes.CREDENTIALS.values()}

    assert statuses == {200, *(status for status, _ in answers.REASONS.values() if status != 503)}
    assert {version for row in shapes.SHAPES.values() for version in row["http"]} == {"1.0", "1.1", "2"}


def test_every_compared_text_is_carried_by_http_or_within_the_token():
    checks = {name: row.ask.__qualname__.partition(".")[0] for name, row in exact.EXACT.items()}

    assert {name for name, made in checks.items() if made in ("_argument", "_scheme")} == set(asked.CARRIED)


def test_a_ticket_may_hold_what_the_contract_says():
    said = re.search(r"up to (\d+) of `(\S+)`", _section(3))

    assert said is not None
    longest, marks = int(said[1]), said[2].removeprefix("A-Za-z0-9")
    for letter in map(chr, range(0x21, 0x7F)):
        assert (answers.TICKET.fullmatch(letter) is not None) == (letter.isalnum() or letter in marks), letter
    assert answers.TICKET.fullmatch("x" * longest)
    assert not answers.TICKET.fullmatch("x" * (longest + 1))


def test_every_reason_has_a_cause_or_a_place_where_it_is_played():
    said = {
        reason: (int(status), {"" if code == "(none)" else code.strip("`") for code in error.split(" or ")})
        for status, error, names, *_ in _table(4, "| status |")
        for reason in re.findall(r"\w+", names)
    }
    caused = {cause.reason for cause in reasons.CAUSES}
    elsewhere = {reason for reason, row in answers.ROWS.items() if "elsewhere" in row}

    assert said == answers.REASONS
    assert caused | elsewhere == set(said)
    assert not caused & elsewhere
    assert all(row.keys() & {"ends", "passes"} for row in answers.ROWS.values())


def test_every_key_of_the_policy_has_an_edge_or_an_exemption():
    assert schema.unplayed(schema.KEYS) == set()


def test_a_new_key_without_a_check_is_found():
    grown = copy.deepcopy(policy_schema())
    grown["$defs"]["Grant"]["properties"]["weekdays"] = {"type": "array"}
    grown["properties"]["quotas"] = {"type": "array"}

    assert schema.unplayed(schema.keys(grown)) == {"grants.weekdays", "quotas"}


def test_a_key_that_lost_its_edge_is_found(monkeypatch):
    left = {key: rows for key, rows in issuers.TABLES["issuers"].items() if key != "accounts"}
    monkeypatch.setitem(issuers.TABLES, "issuers", left)

    assert schema.unplayed(schema.KEYS) == {"issuers.accounts"}


def test_what_is_exempt_is_known_and_not_played_all_the_same():
    known = {key if name == "top" else f"{name}.{key}" for name, keys in schema.KEYS.items() for key in keys}

    assert set(schema.EXEMPT) | schema.played() | set(table("keys")["beyond"]) <= known
    assert not set(schema.EXEMPT) & schema.played()


@pytest.mark.parametrize(
    "why",
    sorted(
        {
            *schema.EXEMPT.values(),
            *schema.PROCESS.values(),
            *(row[why] for row in answers.ROWS.values() for why in ("ends", "elsewhere") if why in row),
            *schema.BOUNDS.values(),
            *waits.ENDS.values(),
        }
    ),
)
def test_an_exemption_names_checks_and_tests_that_are_there(why):
    ids = {check.id for check in plan()}
    for name in re.findall(
        r"\b(?:wire|gate|identity|policy|bound|actor|mcp|proxy|live|fire|fault)\.[\w.*-]+\w", why
    ):
        prefix = name.rstrip("*")
        assert any(known == name or known.startswith(prefix) for known in ids), name
    for name in re.findall(r"tests/[\w/*]+\.py", why):
        assert list(ROOT.glob(name)), name


def _bounds(spec):
    """Keys that are a duration or a number, out of the tables of section 6."""
    found = set()
    for name, rows in re.findall(r"^\*\*`\[+([\w.]+)\]+`\*\*\n\n(.+?)\n\n", spec, re.MULTILINE | re.DOTALL):
        for key, _, _, kind, *_ in _rows(rows):
            if kind.startswith(("duration", "integer")):
                found.add(f"{name}.{key}")
    return found


def test_every_bound_of_a_wait_or_a_buffer_has_its_end_played():
    assert set(schema.BOUNDS) <= _bounds(SPEC) <= {*schema.BOUNDS, *schema.EXEMPT}


def test_a_new_bound_without_a_check_is_found():
    row = '| `timeout` | no | `"5s"` | duration | How long one fetch may take. |\n'
    grown = SPEC.replace(row, row + row.replace("timeout", "patience"))

    assert _bounds(grown) - {*schema.BOUNDS, *schema.EXEMPT} == {"keys.patience"}


def test_every_way_in_which_an_answer_never_ends_is_played():
    """The mocks' faults are the ways in which a server fails; a new fault needs a row."""
    assert set(waits.WAYS) == ENDLESS
    assert set(waits.WAYS) | set(waits.ENDS) == KINDS
    assert not set(waits.WAYS) & set(waits.ENDS)


def _faults_of_issuers():
    """Faults that rows of key sets put on an endpoint."""
    for row in key_sets.ROWS:
        for act in ("first", "then"):
            yield from (fault for name, fault in row.get(act, {}).items() if name != "keys")


def test_every_way_in_which_an_issuer_answers_is_played():
    """A redirect is played by identity.cold.redirect; what never ends by identity.derived.waits."""
    assert {fault["kind"] for fault in _faults_of_issuers()} == KINDS - ENDLESS - {"redirect"}


def test_every_way_in_which_a_certificate_is_wrong_is_played():
    varied = {name for row in certificates.ROWS for name in row.get("certificate", {})}

    # Servers of the stage have addresses; `proxy.proof.asker` varies the kind of a name.
    assert varied == {*inspect.signature(Authority.issue).parameters} - {"self", "kind"} | {"other", "plain"}


def test_every_member_that_the_contract_names_of_a_key_set_is_varied():
    clause = SPEC[SPEC.index("**5.25**") : SPEC.index('<a id="c-6">')]
    entries = [
        entry
        for row in key_sets.ROWS
        for act in ("first", "then")
        for entry in row.get(act, {}).get("keys", ())
    ]
    tables = [entry for entry in entries if isinstance(entry, dict)]
    varied = {name for entry in tables for name in (*entry, *entry.get("without", ()))}
    varied |= {name for fault in _faults_of_issuers() for name in fault.get("members", ())}
    varied |= {
        name for fault in _faults_of_issuers() for name in re.findall(r'"(\w+)":', fault.get("body", ""))
    }

    named = {"use", "key_ops", "alg", "kid", "keys", "jwks_uri"}
    assert named <= set(re.findall(r"`(\w+)`", clause)) <= varied


def test_every_claim_of_the_profile_aws_is_played():
    """`original_session_exp` is played by identity.derived.seconds and identity.outbound.session-end."""
    clause = SPEC[SPEC.index("**5.12**") : SPEC.index("### Pre-signed")]
    said = {"aws_account", "principal_id", "principal_tags", "request_tags", "subject_mode", "roles_claim"}
    rows = [row for key in ("accounts", "roles_claim", "profile") for row in issuers.TABLES["issuers"][key]]
    played = str([row for row in rows if row.get("beside", {}).get("profile") == "aws"]) + "roles_claim"

    assert {name for name in re.findall(r"`(\w+_\w+)`", clause) if name in played} >= said


@pytest.mark.parametrize("row", key_sets.ROWS, ids=lambda row: row["what"])
def test_a_row_of_key_sets_tells_an_agent_that_keeps_a_key_from_one_that_drops_it(row):
    wanted = [answers.expected(word) for _, *words in row["asked"] for word in words]

    assert "then" in row
    assert any(each != answers.OPEN for each in wanted)
    assert len({said for said, *_ in row["asked"]}) == len(row["asked"])


@pytest.mark.parametrize("alg", [*issuers.NEEDED, *issuers.OPTIONAL])
def test_a_signature_of_every_algorithm_has_its_forms(alg):
    found = list(signatures.forms(SigningKey.generate(alg, kid="k"), alg, b"data"))
    size = len(found[0][1])

    assert all(len(octets) == size for _, octets, good in found if good)
    assert {size - 1, size, size + 1} <= {len(octets) for _, octets, _ in found}
    assert len({octets for _, octets, _ in found}) == len(found) > 8


def test_a_reload_ends_each_cause_and_nothing_else():
    base = {"issuers": [], "grants": [], "roles": [], "scopes": [], "denies": []}
    base["denies"] = [{"id": "no-guard"}, {"id": "no-guards"}]
    before, after = reloads.passing_policy(base, ended=False), reloads.passing_policy(base, ended=True)

    for number, (reason, row) in enumerate(reloads.PASSES.items()):
        old, new = (
            next((one for one in found["issuers"] if one["name"] == f"passing{number}"), None)
            for found in (before, after)
        )
        assert (old == new) == ("edit" in row), reason
        assert row.keys() & {"issuer", "untrusted", "edit"}, reason


def test_every_claim_that_a_policy_can_name_is_played_in_every_shape():
    named = {name for name in schema.KEYS["issuers"] if name.endswith("_claim")}

    for name in named:
        assert {name, f"{name} at a path"} & set(claims.CLAIMS), name
    assert {"iss", "sub", "aud", "exp", "nbf", "iat", "jti"} <= set(claims.CLAIMS), "RFC 7519 section 4.1"
    for name, claim in claims.CLAIMS.items():
        assert set(claim.shapes) <= set(claims.SHAPES), name


def test_every_claim_of_the_contract_is_played():
    names = "aws_account|principal_id|original_session_exp|client_id|token_use|jti|subject_mode"
    said = set(re.findall(rf"`({names})`", _section(5)))
    played = {part for claim in claims.CLAIMS.values() for part in claim.path}

    assert said <= played


def test_every_table_of_the_policy_has_its_reloads():
    named = {name for name, key in schema.KEYS["top"].items() if key.table and name not in schema.PROCESS}

    assert set(table("events")) == named - {"keys"} | {"multi_role"}


def test_every_rule_of_time_is_played():
    """`exp`, `nbf` and `iat` with leeway and without, a role's lifetime, an outer session."""
    for name in ("exp", "nbf", "iat"):
        assert {name, f"{name} with leeway"} <= set(seconds.RULES)
    assert {"a role's lifetime", "the outer session"} <= set(seconds.RULES)


def test_every_algorithm_of_the_contract_is_played():
    clause = SPEC[SPEC.index("**5.10**") : SPEC.index("**5.11**")]
    said = set(re.findall(r"\b(?:RS|ES|PS)\d{3}\b|\bEdDSA\b|\bEd25519\b", clause))

    assert said <= {*issuers.NEEDED, *issuers.OPTIONAL}


# --- the tables can fail ------------------------------------------------------------------------------------


EDGES = rules.edges()


@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: f"{edge.key}-{edge.room[5:]}")
def test_an_edge_makes_a_difference(edge):
    """Else an agent that ignores the key would pass."""
    with_, without = rules.policy_with(BASE, [edge]), rules.policy_with(BASE, [edge], without=True)
    usual = {"method": "GET", "host": "kiosk.example.com", "src": "192.0.2.7", "role": None}
    verdicts = [
        [judge(policy, rules.claims_of(said, NOW), {**usual, **asked}, NOW) for policy in (with_, without)]
        for said, asked in edge.asked
    ]

    assert any(one != other for one, other in verdicts)
    assert load_error(with_) is None
    assert load_error(without) is None


@pytest.mark.parametrize(("name", "rows"), issuers.TABLES.items())
def test_a_value_of_an_issuer_makes_a_difference(name, rows):
    for key, values in rows.items():
        assert any(with_ != without for row in values for _, with_, without in row["asked"]), f"{name}.{key}"


def test_a_text_has_neighbours_of_every_sort():
    found = dict(exact.neighbours("kiosk"))

    wanted = {"KIOSK", "kiosk/", "kiosk ", "kios", "kiosk\u00a0", "\u212aios\u212a", "kio\u017fk"}
    assert "\u212aio\u212a" not in found.values()
    assert wanted <= set(found.values())
    assert len(found) > 25


def test_pairs_of_reasons_are_many_and_in_order():
    pairs = list(reasons.pairs())

    assert len(pairs) > 150
    assert all(first.stage < second.stage for first, second in pairs)


def test_a_policy_is_spoilt_in_one_place_at_a_time():
    base = {name: [{}] for name, key in schema.KEYS["top"].items() if key.table} | {"version": 1}
    spoilt = list(reloads.faults(base))
    bare, of_actors = ({what for what, *_ in reloads.faults(base, names)} for names in ((), ("actor",)))

    assert len(spoilt) > 120
    assert len({what for what, _, _ in spoilt}) == len(spoilt)
    assert all("'actors': " in what for what in of_actors - bare)
    assert len(of_actors) > len(bare)


def test_every_part_of_a_token_is_bent_and_exchanged():
    tokens = ["aaaaaaaa.bbbbbbbb.cccccccc", "dddddddd.eeeeeeee.ffffffff"]

    bent = dict(credentials._bent(tokens[0]))
    assert {what.partition(",")[0] for what in bent} == set(credentials.PARTS)
    assert tokens[0] not in bent.values()
    assert len(list(credentials._exchanged(tokens))) == 6


def test_an_answer_that_is_not_whole_is_told():
    from iamroles_scenarios.wire.codec import DataType, Typed
    from iamroles_scenarios.wire.frames import Action, Scope

    def answer(**values):
        return [Action(Scope.txn, name, value) for name, value in values.items()]

    text = lambda value: Typed(DataType.STRING, value)  # noqa: E731
    sound = {
        "status": Typed(DataType.INT32, 403), "reason": text("no_grant"), "error": text("insufficient_scope"),
        "allow": Typed(DataType.BOOL, value=False),
    }  # fmt: skip

    assert answers.faults(answer(**sound)) == answers.faults(answer(**sound | {"error": text("")})) == []
    token = sound | {"error": text("invalid_token")}
    assert answers.faults(answer(**token)) == ["error is 'invalid_token' beside no_grant"]
    assert answers.faults(answer(**sound, backend=text("app"))) == ["backend is 'app' beside no_grant"]
    strange = sound | {"expires": Typed(DataType.INT32, 7)}
    assert answers.faults(answer(**strange)) == ["expires is a INT32 on the wire"]
    other = sound | {"status": Typed(DataType.INT32, 401)}
    assert answers.faults(answer(**other)) == ["status is 401 beside no_grant"]


# --- under open streams -------------------------------------------------------------------------------------


def test_each_row_that_ends_an_allow_ends_a_stream():
    """Each row of rules and issuers, in each direction; rows that no stream can play are exempt."""
    base = {**policy_of(WorldSpec(policy="derived")), "denies": []}
    ends = {
        edge.key if edge.key in live.EXEMPT else (edge.key, edge.room)
        for edge in EDGES
        for said, asked in edge.asked
        if len({each.backend for each in live.outcomes(edge, base, said, asked)}) > 1
    }
    played = {(row.key, row.room) for row in live.of_rules(base, EDGES) if row.ends}

    assert ends - played == set(live.EXEMPT)
    for name in ("issuers", "limits"):
        for number, key, row, rows in live.of_issuers(name):
            pairs = [(said, *pair) for said, *pair in row["asked"] if "open" not in pair]
            allowed = [[one == "allow" or isinstance(one, dict) for one in pair] for _, *pair in pairs]
            wanted = {without for pair in allowed for without in (0, 1) if pair[without] > pair[not without]}
            assert {row.without for row in rows if row.ends} == wanted, (name, key, number)


def test_each_key_of_a_revocation_is_played_alone_and_in_each_pair():
    said = re.search(r"one or more of ((?:`\w+`,?\s)+)", _section(9))
    rows = [(set(named), bounded) for named, bounded, _ in live.revocations()]

    # Of agents that declare more: bound.stream.revoked, actor.stream.revoked.
    assert set(re.findall(r"\w+", said[1])) - {"keys", "actors"} == set(live.KEYS)
    for one in live.KEYS:
        for other in live.KEYS:
            assert ({one, other}, True) in rows
            assert ({one, other}, False) in rows
    for named, bounded, found in live.revocations():
        assert {live.revoked(named, each, bounded=bounded) for each in found} == {True, False}


def test_each_likeness_of_a_fresh_credential_is_broken_alone():
    said = re.search(r"fresh credential of the same\s(.+?) prolongs", _section(9), re.DOTALL)
    broken = {row["differs"] for row in table("streams")["likeness"] if not row.get("prolongs")}

    assert set(re.split(r",\s| and\s", said[1])) - {"key (12.17)"} <= broken, "key: bound.stream.renew"
