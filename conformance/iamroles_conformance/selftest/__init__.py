"""Proof that the suite can fail: mutants of the reference agent, each caught by the checks that should.

A mutant is one small override, applied in a child process that then runs the agent's own `main`. The agent
knows nothing of it, and nothing outside `selftest.mutants` imports the agent. To add one, write it in a
module of `mutants/<family>/`: its id, the requirements that must notice it, what the agent then does wrong,
and what is overridden.

    mutant("gate.ignores-audience", "TOKEN-AUD-001", "ignores aud")(
        around(ClaimRules, "_plain_audience")(lambda sound, self, payload: None)
    )

`mutants/override.py` has the ways to override, and `mutants/edits.py` what several mutants share. If one
expression does not say it, decorate a function:

    @mutant("gate.no-token-invalid", "TOKEN-MISSING-001", "calls a missing token invalid")
    @around(Gate, "_identify")
    async def no_token_invalid(sound: Any, self: Any, check: Any) -> Any:
        if not check.authorization:
            raise Refusal(Reason.TOKEN_MALFORMED, "none")
        return await sound(self, check)

Then run `iamroles conformance selftest --mutant gate.ignores-audience`. Every requirement named must have a
check that passes on the sound agent and fails on the mutant. Other checks may turn red as well; the command
shows them.
"""
