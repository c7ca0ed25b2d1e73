"""`python tools/convert_checkpoint.py ...` is `videoattn convert ...`."""

import sys

from videoattn.cli.app import main

main(["convert", *sys.argv[1:]])
