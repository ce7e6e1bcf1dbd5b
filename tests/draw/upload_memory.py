"""What reading the largest images and masks takes, file by file: a child's peaks in KiB as JSON.

The C library gives back at once what is freed, so that no block of one file is there for the next.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from PIL import Image

from backends.diffusion.kind import FILE_BYTES, Draw, Sides
from backends.diffusion.sources import read
from tests.draw.test_sources import LARGEST, spooled
from tests.seeing.hostile import encoded, odd
from tests.seeing.test_hostile import kib

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    whole, photograph = (data for name, data in odd() if name in ("sixteen million pixels", "a phone's jpeg"))
    hole = encoded(Image.new("RGBA", (4096, 4096), (1, 2, 3, 0)), "PNG")
    sent = [spooled(folder, data + bytes(FILE_BYTES - len(data))) for data in (whole, photograph, hole)]
    peaks = []
    for image, mask in ((sent[0], None), (sent[1], None), (sent[2], sent[2])):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        began = kib("VmRSS")
        read(Draw("a", "red", 0, 0, seed=0, image=image, mask=mask), Sides(largest_pixels=LARGEST))
        peaks.append(kib("VmHWM") - began)
    print(json.dumps(peaks))
