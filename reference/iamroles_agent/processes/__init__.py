"""The agent's processes: the parent (`supervisor`), the fetcher, the workers, and how they talk (`link`).

`agent` puts them together. What they agree on, without sockets and clocks, is in `iamroles_agent.control`.
"""
