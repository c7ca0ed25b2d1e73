"""`python tools/convert_checkpoint.py ...` is `videoattn convert ...`."""

import sys

from videoattn.cli import main

main(["convert", *sys.argv[1:]])
