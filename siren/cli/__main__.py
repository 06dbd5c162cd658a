"""`python -m siren.cli`."""

from siren.cli import main

main()
