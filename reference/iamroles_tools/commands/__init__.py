"""The commands of `iamroles` that help people; each module has one group of its name."""
