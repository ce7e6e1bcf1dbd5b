"""Runs the application as `onecard serve` does, on a free port, over the fake engine; prints the port.

Usage: python -m tests.http.launcher SETTINGS_JSON
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys

from server.app import TRAINER, create_app
from server.cli.lifecycle import serve_until_told
from server.cli.logs import configure_logging
from server.settings.config import Settings


def main() -> None:
    settings = Settings.model_validate(json.loads(sys.argv[1]))
    configure_logging(settings.logging)
    logging.getLogger("onecard").setLevel(logging.DEBUG)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(2048)
    listener.setblocking(False)
    port = listener.getsockname()[1]
    app = create_app(settings, trainer=os.environ.get("ONECARD_TEST_TRAINER", TRAINER))

    async def announce() -> None:
        print(port, flush=True)

    asyncio.run(
        serve_until_told(
            app,
            [listener],
            drain_s=settings.server.drain_s,
            announce=announce,
            until_stdin=False,
        )
    )


main()
