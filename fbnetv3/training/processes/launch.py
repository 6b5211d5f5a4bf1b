"""Start several processes on one machine without torchrun (`--num-gpus`)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable

from torch import multiprocessing

from fbnetv3.errors import UsageError
from fbnetv3.utils.command_line import is_multi_process, run_tool
from fbnetv3.utils.imports import import_modules, user_modules


def launch(run: Callable[[], None], num_processes: int, *, after_interrupt: str = "") -> None:
    """Run a picklable function in `num_processes` processes that form a process group, as under torchrun.

    With one process, the function runs in this one. Ctrl-C and SIGTERM reach all processes. If any fails, this one
    exits with the code of the first that did.
    """
    if num_processes == 1:
        run()
        return
    if is_multi_process():
        raise UsageError(
            f"remove --num-gpus {num_processes}: torchrun has already started several processes"
        )
    # Find a free port; another program could still take it before it is used
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Each process reports its own error, which multiprocessing's report would only repeat
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    previous_handlers = {
        number: signal.signal(number, _forward_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        arguments = (run, num_processes, port, after_interrupt, user_modules())
        context = multiprocessing.start_processes(
            _run_in_process, arguments, num_processes, join=False, start_method="spawn"
        )
        # Returns False while processes run; raises when the first one fails, after ending the others
        while not context.join():
            pass
    except multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code if error.exit_code > 0 else 128 - error.exit_code)
    finally:
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _run_in_process(
    rank: int,
    run: Callable[[], None],
    num_processes: int,
    port: int,
    after_interrupt: str,
    modules: list[str],
) -> None:
    """Set torchrun's variables, import the user's modules, and run the function as a tool."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(num_processes),
        LOCAL_WORLD_SIZE=str(num_processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )

    def main(_: object) -> None:
        import_modules(modules)
        run()

    run_tool(main, after_interrupt=after_interrupt)


def _forward_signal(number: int, frame: object) -> None:
    """Send SIGTERM to all processes. After Ctrl-C, which the terminal sends to all of them, this changes nothing."""
    for process in multiprocessing.active_children():
        assert process.pid is not None  # it has been started
        os.kill(process.pid, signal.SIGTERM)
