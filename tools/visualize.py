"""`python tools/visualize.py ...` is `videoattn visualize ...`."""

import sys

from videoattn.cli.app import main

main(["visualize", *sys.argv[1:]])
