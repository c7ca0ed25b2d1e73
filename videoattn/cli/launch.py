"""`videoattn launch`: runs a command in several processes, on one machine or more."""

import logging
import os
import signal
import sys
from typing import Annotated

import typer

from videoattn.cli.app import STOPPED

_SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[OPTIONS OF torchrun] COMMAND ...", help="train demo data.root=..."
        ),
    ],
) -> None:
    """Run a command in several processes.

    The options are those of torchrun: --nproc-per-node 8, --max-restarts 3, --nnodes 2. Unlike
    torchrun, it prints the error of the failed process without a second traceback, returns its exit
    status, and forwards SIGUSR1. See docs/training.md.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    arguments = parse_args(words)
    arguments.training_script_args.insert(0, arguments.training_script)
    arguments.training_script, arguments.module = "videoattn", True
    # An argument in newer versions of torch, a variable in older ones.
    arguments.signals_to_handle = os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = _SIGNALS
    # Each start of the processes gets its own store. In a shared store, processes restarted on
    # several machines would read the addresses of the previous ones.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    logging.disable(logging.WARNING)
    # Logs only processes that a signal ended: the others print their own errors.
    api = logging.getLogger("torch.distributed.elastic.multiprocessing.api")
    api.addFilter(lambda record: "exitcode: -" in record.getMessage())
    try:
        run(arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()  # it has printed its error
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except SignalException as error:
        stops = (signal.SIGTERM, signal.SIGUSR1)
        sys.exit(STOPPED if error.sigval in stops else 128 + error.sigval)
    except RendezvousError as error:
        raise ValueError(f"the machines did not find each other: {error}") from error
