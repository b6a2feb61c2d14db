"""Proof that the suite can fail: mutants of the reference agent, each caught by the checks that should.

A mutant is one small override, applied in a child process that then runs the agent's own `main`. The agent
knows nothing of it, and nothing outside `selftest.mutants` imports the agent. To add one, write a function in
`mutants/<lane>.py`:

    @mutant("gate.no-audience", kills=["TOKEN-AUD-001"], title="does not look at aud")
    def no_audience() -> None:
        from iamroles_agent.tokens import claims
        claims.check_audience = lambda *_: None

and run `iamroles conformance selftest --mutant gate.no-audience`. Every id in `kills` must have a check that
passes on the sound agent and fails on the mutant; what else turns red is shown, and is no fault.
"""
