"""`python -m pgsandbox` is `pgsandbox`."""

from pgsandbox.cli import main

main()
