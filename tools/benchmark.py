"""`python tools/benchmark.py ...` is `videoattn bench ...`."""

import sys

from videoattn.cli import main

main(["bench", *sys.argv[1:]])
