"""Two workers wherever something changes, and questions that reach both."""

import ast
import re
from contextlib import closing
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from iamroles_scenarios import checks
from iamroles_scenarios.base.errors import CheckFailed, Untestable
from iamroles_scenarios.base.family import holders
from iamroles_scenarios.checks.derived.key_sets import until_right
from iamroles_scenarios.checks.fault.fixture import FaultBench
from iamroles_scenarios.checks.policy.workers import CHANGES
from iamroles_scenarios.checks.proxy.traffic import HttpQuestion
from iamroles_scenarios.declarations.scenario import Expectation, RequestSpec, Step, WorldSpec, scenarios
from iamroles_scenarios.engine.answers import ALLOW
from iamroles_scenarios.engine.bench import CHANGING, Bench, SpopQuestion, bench, own_bench
from iamroles_scenarios.engine.observation import Observation, mismatches
from iamroles_scenarios.engine.spread import UNSEEN, Spread
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.engine.worlds import Loan, Worlds
from iamroles_scenarios.stage.reference import reference_agent
from iamroles_scenarios.wire.codec import Typed
from iamroles_scenarios.wire.frames import Action, Scope

ROOT = Path(checks.__path__[0])
CHANGE = {"reload", "must_reload", "take_grant", "revoke", "rotate", "adopt", "announce", "remove", "publish"}
CHANGE |= {"add_key", "poison", "kill", "restart_agent", "expire"}
"""Methods that change what is right, or end a process."""


@pytest.fixture(scope="module")
def worlds(stage):
    agent = reference_agent()
    with closing(Worlds(stage, agent)) as found:
        yield SimpleNamespace(worlds=found, target=Target("gate-spop", stage, agent, found))


def _reached(functions, name, seen):
    """The nodes of a function, and of those of its module that it names."""
    if name in functions and name not in seen:
        seen.add(name)
        for node in ast.walk(functions[name]):
            yield node
            if isinstance(node, ast.Name):
                yield from _reached(functions, node.id, seen)


def _one_worker():
    """Calls that lend a shared world with one worker to a check that changes something."""
    for path in sorted(set(ROOT.rglob("*.py")) - {ROOT / "live" / "fixture.py"}):
        nodes = ast.walk(ast.parse(path.read_text()))
        functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
        module = import_module(".".join(path.relative_to(ROOT.parents[1]).with_suffix("").parts))
        for name, function in functions.items():
            reached = list(_reached(functions, name, set()))
            played = any(ast.unparse(one).startswith("check(") for one in function.decorator_list)
            changed = any(isinstance(node, ast.Attribute) and node.attr in CHANGE for node in reached)
            for call in (node for node in reached if played and changed and isinstance(node, ast.Call)):
                if getattr(call.func, "id", "") not in {"bench", "live_bench"}:
                    continue
                if {one.arg for one in call.keywords} & {"own", "changes", "revoking"}:
                    continue
                lent = call.func.id == "bench" and eval(ast.unparse(call.args[1]), vars(module))
                if lent not in CHANGING:
                    yield f"{path.stem}.{name}: {ast.unparse(call)}"


def test_each_check_that_changes_something_has_two_workers():
    assert list(_one_worker()) == []


def test_a_scenario_changes_something_if_a_step_does():
    changing = {name for name, one in scenarios().items() if one.world.changes}

    assert {"fire.worker", "fire.identity", "gate.rotation", "gate.reload", "fire.sts"} <= changing
    assert not changing & {"gate.slow-path", "gate.agent-silent", "policy.union", "fire.certificate"}
    assert not Step.model_validate({"keys": {"issuer": "corp", "do": "slow"}}).changes


def test_each_kind_of_change_of_the_clause_has_a_row():
    spec = (ROOT.parents[2] / "conformance" / "SPEC.md").read_text()
    clause = re.search(r"\*\*10\.10\*\*(.*?)\[WORKERS", spec, re.DOTALL)[1]
    words = ("a policy", "reload"), ("a key in and a key out", "key"), ("a revocation", "revocation")
    words += (("an STS session", "STS session"),)

    assert [kind for kind, word in words if word in clause] == list(CHANGES)


def test_a_world_that_changes_has_two_workers_if_the_agent_declares_them(worlds):
    spec = WorldSpec(policy="orders", changes=True)
    with worlds.worlds.borrow(spec, "two") as loan:
        assert loan.workers == loan.world.agent.ready["workers"] == 2
    with worlds.worlds.borrow(WorldSpec(policy="orders"), "one") as loan:
        assert loan.workers == loan.world.agent.ready["workers"] == 1
    worlds.worlds._agent.features["workers"] = False
    with worlds.worlds.borrow(spec.model_copy(update={"own": True}), "none") as loan:
        assert loan.workers == 1
    worlds.worlds._agent.features["workers"] = True


def test_both_agents_of_a_world_are_closed():
    first, second = MagicMock(), MagicMock()
    started = SimpleNamespace(start=lambda *_: Loan(first, {}, second=second))
    with own_bench(SimpleNamespace(worlds=started, lane="gate", scale=1.0), "orders", agents=2):
        pass

    for world in (first, second):
        world.close.assert_called_once()


def test_each_worker_is_asked(worlds):
    with bench(worlds.target, "orders", "asked", own=True) as here:
        seen = here.ask(here.token())
        with Spread(here.world.agent, 2, 5.0) as spread:
            pid = here.world.agent.host_pid
            held = {holders(pid, [one.port]).get(one.port) for one in spread.askers()}
            assert (len(held), here.world.agent.spread, None in held) == (2, True, False)
            first = spread.askers()[0]
            assert spread.askers()[0] is first
            first.close()
            assert first not in spread.askers()

    assert [one.allow for one in (seen, *seen.others)] == [True, True]


def test_each_worker_is_waited_for_until_it_is_right():
    wrong = {"first": 1, "second": 2}

    def actions(asked, of):
        wrong[of] -= 1
        return [[Action(Scope.txn, "allow", Typed.of(wrong[of] < 0))] for _ in asked]

    here = Bench(SimpleNamespace(seconds=float), MagicMock())
    here.spread, here.actions = SimpleNamespace(askers=lambda: list(wrong)), actions
    until_right(here, [SpopQuestion("a token", {}, ALLOW)])

    assert wrong == {"first": -1, "second": -1}


def test_where_no_process_is_seen_many_connections_are_asked(worlds):
    with bench(worlds.target, "orders", "unseen", own=True) as here:
        agent = SimpleNamespace(spop_address=here.world.agent.spop_address, host_pid=None, spread=False)
        with Spread(agent, 2, 5.0) as spread:
            assert len(spread.askers()) == UNSEEN


def test_an_agent_whose_worker_takes_no_connection_cannot_be_judged(worlds, monkeypatch):
    monkeypatch.setattr(f"{Spread.__module__}.holders", lambda pid, ports: dict.fromkeys(ports, pid))
    with (
        bench(worlds.target, "orders", "one-takes-all", own=True) as here,
        Spread(here.world.agent, 2, 1.0) as one,
        pytest.raises(Untestable, match="1 of 2 workers took a connection"),
    ):
        one.askers()


def test_a_wrong_allow_after_a_fault_is_no_recovery():
    question = HttpQuestion(RequestSpec(), "", Expectation(status=200, backend="orders-ro"))
    answers = iter(Observation(200, True, "", backend) for backend in ("orders-rw", "orders-ro", "orders-ro"))
    here = SimpleNamespace(
        seconds=float, send=lambda _: next(answers), failed=lambda *why: CheckFailed(why[0])
    )

    with pytest.raises(CheckFailed, match="after its end: the answer is wrong"):
        FaultBench.must_recover(here, "reset", [question])


def test_a_wrong_answer_of_another_worker_counts():
    right, wrong = (Observation(status, status == 200, "", "") for status in (200, 403))
    seen = Observation(200, True, "", "", others=(right, wrong))

    assert mismatches(Expectation(status=200), seen, {}) == ["status: expected 200, got 403"]
