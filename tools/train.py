"""`python tools/train.py ...` is `videoattn train ...`."""

import sys

from videoattn.cli.app import main

main(["train", *sys.argv[1:]])
