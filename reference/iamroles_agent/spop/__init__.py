"""SPOP 2.0, the protocol between HAProxy and its offload agents (HAProxy `doc/SPOE.txt` section 3).

Sans-IO: bytes go in, events and bytes come out; sockets live in `iamroles_agent.serving.server`.

- `varint`, `values`, `frames`: the codec, from the smallest piece upwards.
- `messages`: what HAProxy asks (SPEC.md section 2); `actions`: what the agent answers (section 3).
- `connection`: the state machine of a connection.
- `errors`: what can go wrong, and whose fault it is.
"""
