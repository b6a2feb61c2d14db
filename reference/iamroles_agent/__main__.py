"""`python -m iamroles_agent`: the `iamroles` command."""

from iamroles_agent.main import main

if __name__ == "__main__":
    main(prog_name="iamroles")
