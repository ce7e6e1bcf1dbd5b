"""The training process: one recipe, one socket to the server; it never outlives that.

`python -m backends.training --fd N --parent PID`. A second thread hears `Leave`; end-of-file on the socket or the
parent's death ends it at once: what is lost is in the data of the last checkpoint's steps, and is computed again.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, NoReturn

from backends.border.link import EXIT_ENGINE_ERROR, EXIT_ORPHANED, EXIT_OUT_OF_MEMORY, Link, leave, note, or_leave
from backends.border.wire import train_command_decoder
from backends.engine import LoadError
from backends.machine.kernel import call_me, die_with, limit_damage, share_few_arenas
from backends.machine.started import arguments
from backends.messages.training import Leave, Train, TrainCommand, TrainFailed
from backends.prompts.renderer import fork_beside, rendering_beside
from backends.training.errors import TrainError

if TYPE_CHECKING:
    from backends.messages.training import Recipe


def serve(fd: int, server_pid: int) -> NoReturn:
    """Train on the socket's word, and end."""
    die_with(server_pid, status=EXIT_ORPHANED)
    limit_damage()
    share_few_arenas(1)  # else freed activations stay with the process, which would look twice as large
    call_me(b"onecard-trainer")
    os.set_inheritable(fd, False)
    link = Link(socket.socket(fileno=fd), train_command_decoder())
    first, *rest = link.receive()
    if isinstance(first, Leave):
        leave(EXIT_ORPHANED)
    renderer = fork_beside(keep_out=fd)
    wanted = threading.Event()
    if rest:
        wanted.set()
    threading.Thread(target=or_leave, args=(lambda: _hear(link, wanted),), daemon=True).start()
    with rendering_beside(renderer):
        _train(first.recipe, link, wanted)


def _hear(link: Link[TrainCommand], wanted: threading.Event) -> None:
    while True:
        if any(isinstance(command, Train) for command in link.receive()):
            leave(EXIT_ENGINE_ERROR)
        wanted.set()


def _train(recipe: Recipe, link: Link[TrainCommand], wanted: threading.Event) -> NoReturn:
    try:
        from backends.training import job

        end = job.run(recipe, link.send, leaving=wanted.is_set)
    except TrainError as error:
        link.send(TrainFailed(error.message, error.code))
        leave(0)
    except LoadError as error:  # a library that is not to be imported
        link.send(TrainFailed(error.message))
        leave(0)
    except ModuleNotFoundError as error:
        link.send(TrainFailed(f"the package {error.name} is missing. hint: pip install 'onecard[training]'"))
        leave(0)
    except BaseException as error:  # its state is unknown now: the server starts another process
        note(error)
        leave(EXIT_OUT_OF_MEMORY if isinstance(error, MemoryError) else EXIT_ENGINE_ERROR)
    link.send(end)
    leave(0)


def main() -> NoReturn:
    """Run one job on the socket `--fd`."""
    args = arguments("onecard-trainer")
    serve(args.fd, args.parent)


if __name__ == "__main__":
    main()
