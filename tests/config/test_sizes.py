"""Sizes as people write them."""

import pytest

from server.settings.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [
        ("12GiB", 12 * 2**30),
        ("600MiB", 600 * 2**20),
        ("12GB", 12 * 10**9),
        ("11.2GiB", int(11.2 * 2**30)),
        (" 512 kib ", 512 * 1024),
        ("4096", 4096),
        (4096, 4096),
        (0, 0),
        ("7B", 7),
    ],
)
def test_a_size_is_read_in_bytes(text, n_bytes):
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text",
    ["", "GiB", "12 XB", "12G", "-1", -1, "1.5", 1.5, True, None, "1e9", "inf", "9" * 30, "٣GiB", "8388608TiB", 2**63],
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size|whole number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (512, "512 B"),
        (2048, "2 KiB"),
        (600 * 2**20, "600 MiB"),
        (int(11.2 * 2**30), "11.2 GiB"),
        (12 * 2**30, "12 GiB"),
    ],
)
def test_a_size_is_printed_in_binary_units(n_bytes, text):
    assert format_size(n_bytes) == text
