"""Several processes of a tool on one machine, for those who do not start it with torchrun."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

import torch
from torch import multiprocessing

from fbnetv3.errors import UsageError
from fbnetv3.training.processes.distributed import started_together
from fbnetv3.utils.command_line import run_tool


def launch(run: Callable[[], None], processes: int, *, after_interrupt: str = "") -> None:
    """Run something in so many processes of this machine, which find each other as torchrun's do; 1 runs it here.

    Ctrl-C and SIGTERM reach all of them. Where they do not all end well, this process exits with the code of the one
    that ended first.

    Args:
        run: what to run; it can be pickled.
        processes: how many; on a machine with GPUs, at most as many as these.
        after_interrupt: as for `run_tool`.

    Raises:
        UsageError: less than one process, more than GPUs, or torchrun has started several already.
    """
    if processes < 1:
        raise UsageError(f"--num-gpus {processes} is not at least 1")
    if processes == 1:
        run()
        return
    if started_together():
        raise UsageError(f"--num-gpus {processes}: torchrun has started several processes already; leave it out")
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise UsageError(f"--num-gpus {processes}: there are {torch.cuda.device_count()} GPUs")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it says what the processes say better
    before = {number: signal.signal(number, _pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        context = multiprocessing.start_processes(
            _work, (run, processes, _free_port(), after_interrupt), processes, join=False, start_method="spawn"
        )
        while not context.join():
            pass
    except multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(rank: int, run: Callable[[], None], processes: int, port: int, after_interrupt: str) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    run_tool(lambda _: run(), after_interrupt=after_interrupt)


def _pass_on(number: int, frame: object) -> None:
    """Tell all processes to end. A terminal has sent them Ctrl-C already, and SIGTERM does not hurry who has that."""
    for process in multiprocessing.active_children():
        assert process.pid is not None  # it has started
        os.kill(process.pid, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
