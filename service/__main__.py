"""`python -m service` is the `camserve` command."""

from service.cli import main

main()
