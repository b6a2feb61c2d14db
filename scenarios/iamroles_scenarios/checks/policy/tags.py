"""Policy check of tags on the wire: each answer sets or unsets every variable."""

from __future__ import annotations

from iamroles_scenarios.declarations.results import check
from iamroles_scenarios.engine import answers
from iamroles_scenarios.engine.bench import SpopQuestion, bench
from iamroles_scenarios.engine.target import Target
from iamroles_scenarios.wire.frames import Scope

_ANSWER_WITHIN = 10.0


@check("policy.tags.every-variable", "TAG-CLEAR-001")
def every_variable(target: Target) -> str:
    """Each answer sets or unsets every variable of the contract.

    HAProxy keeps a variable that an answer does not mention. Judged for an allow, 400, 401 and 403.
    """
    with bench(target, "policy") as here:
        token = f"Bearer {here.token()}"
        stranger = f"Bearer {here.token(exp='-60s')}"
        asked = [
            {"authorization": token, "path": "/orders/1"},
            {"authorization": token, "path": "/orders/1"},
            {"authorization": token, "path": "/private"},
            {"authorization": token, "path": "/orders/../private"},
            {"authorization": stranger, "path": "/orders/1"},
            {"path": "/orders/1"},
        ]
        questions = [SpopQuestion(each["path"], each, answers.OPEN) for each in asked]
        with here.asking(_ANSWER_WITHIN):
            for each, actions in zip(asked, here.actions(questions, window=1), strict=True):
                named = {action.name for action in actions if action.scope is Scope.txn}
                if missing := sorted(answers.ALWAYS - named):
                    raise here.failed(
                        f"the answer neither sets nor unsets {', '.join(missing)}",
                        expected=f"path={each['path']!r}: each variable of SPEC.md section 3 set or unset",
                        received=", ".join(map(str, actions)),
                    )
    return f"{len(asked)} answers"
