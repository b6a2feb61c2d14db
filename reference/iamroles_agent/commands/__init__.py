"""The groups of the `iamroles` command that belong to the agent."""
