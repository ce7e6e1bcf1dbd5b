"""Load a model that draws, in a process of its own that counts what it asks of a network, and draw one image.

Prints the attempts and the bytes of the image: `python -m tests.draw.no_network PATH IMAGE_CONFIG`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request")


def main() -> None:
    """See above."""
    attempts: list[str] = []
    sys.addaudithook(lambda event, given: attempts.append(f"{event} {given}") if event in NETWORK else None)
    from backends.diffusion.kind import Draw, Picture
    from tests.draw.loading import loaded

    path, config = sys.argv[1:]
    engine = loaded(Path(path), options={"image_config": config} if config else {})
    events = [*engine.add(engine.prepare(Draw("a", "a red background", 64, 64, seed=1, steps=2)))]
    while not engine.idle:
        events += engine.step().events
    (picture,) = [event for event in events if isinstance(event, Picture)]
    print(json.dumps({"attempts": attempts, "n_bytes": len(picture.data)}))


if __name__ == "__main__":
    main()
