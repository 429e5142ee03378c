"""``python -m timestep``: the command line."""

from timestep.cli import main

main()
