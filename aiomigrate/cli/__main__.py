"""`python -m aiomigrate.cli`: the same as the console script."""

from aiomigrate.cli.main import main

main()
