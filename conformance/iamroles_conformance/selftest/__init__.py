"""Proof that the suite can fail: mutants of the reference agent, each caught by the checks that should.

A mutant is one small override, applied in a child process that then runs the agent's own `main`. The agent
knows nothing of it, and nothing outside `selftest.mutants` imports the agent. To add one, write it in a
module of `mutants/<family>/`:

    @mutant("gate.no-token-invalid", kills=["TOKEN-MISSING-001"], title="calls a missing token invalid")
    @around(Gate, "_identify")
    async def no_token_invalid(sound: Any, self: Any, authenticator: Any, check: Any) -> Any:
        if not check.authorization:
            raise Refusal(Reason.TOKEN_MALFORMED, "none")
        return await sound(self, authenticator, check)

or, where one expression says it, as one line of the table:

    mutant("gate.ignores-audience", kills=["TOKEN-AUD-001"], title="ignores aud",
           apply=around(ClaimRules, "_plain_audience")(lambda sound, self, payload: None))

and run `iamroles conformance selftest --mutant gate.ignores-audience`. Every id in `kills` must have a check
that passes on the sound agent and fails on the mutant; what else turns red is shown, and is no fault.
"""
