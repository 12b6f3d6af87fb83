"""`python -m hemafast` is the `hemafast` command."""

from hemafast.cli import main

main()
