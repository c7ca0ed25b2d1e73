"""`python tools/test.py ...` is `videoattn test ...`."""

import sys

from videoattn.cli.app import main

main(["test", *sys.argv[1:]])
