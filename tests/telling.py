"""What a process was given at its start, as JSON on its standard output, and how it ends; for `test_warm`."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    atexit.register(lambda: print("at the end"))
    streams = [sys.stdin, sys.stdout, sys.stderr]
    told = {
        "arguments": sys.argv[1:],
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "streams": [(one.encoding, one.errors, one.line_buffering, one.fileno()) for one in streams],
        "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE)],
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "threads": threading.active_count(),
        "group": os.getpgid(0),
        "files": sorted(path.name for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.exists()),
        "heard": sys.stdin.read(),
    }
    print(json.dumps(told))
    print("é \udcff", file=sys.stderr)
    match sys.argv[1]:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "waits":
            signal.pause()
        case "leaves" if os.fork() == 0:
            signal.alarm(6)
            signal.pause()
        case "leaves":
            os._exit(0)
        case "raises":
            raise ValueError("on purpose")
        case code:
            sys.exit(int(code))


if __name__ == "__main__":
    main()
