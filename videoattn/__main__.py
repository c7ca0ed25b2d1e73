"""`python -m videoattn`, for torchrun: `torchrun --nproc-per-node 2 -m videoattn train ...`."""

from videoattn.cli.app import main

main()
