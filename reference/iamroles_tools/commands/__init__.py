"""The groups of the `iamroles` command that belong to the tools; each module has a group of its name."""
