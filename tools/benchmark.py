"""`python tools/benchmark.py ...` is `videoattn bench ...`."""

import sys

from videoattn.cli.app import main

main(["bench", *sys.argv[1:]])
