"""The stage: HAProxy, agent, mocks and backends as processes or containers."""
