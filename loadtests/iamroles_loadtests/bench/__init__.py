"""The cost of the agent and the gate, compared with alternatives: all in one run, taking turns.

- `noop`: an SPOE agent that answers everything alike: the floor in Python.
- `variants`: the shipped HAProxy configuration with steps left out, or with HAProxy's own `jwt_verify`.
- `rounds`: contenders take turns; ratios with intervals come from the rounds.
- `agent`, `gate`: the two benches.
"""
