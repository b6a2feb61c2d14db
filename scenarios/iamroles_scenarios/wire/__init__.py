"""The suite's own SPOP wire client; shares no code with any agent."""
