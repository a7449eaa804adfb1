"""`python -m agent` is `overnight`."""

from agent.cli import main

main()
