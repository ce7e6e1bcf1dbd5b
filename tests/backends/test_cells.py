"""Counting the cells of a pool against the plainest model of it: a set of users per cell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from backends.generation.cells import Cells

CHANGES = st.lists(st.tuples(st.sampled_from(["grow", "share", "drop"]), st.integers(0, 5), st.integers(0, 20)))


@given(changes=CHANGES)
def test_cells_are_counted_once_however_many_sequences_use_them(changes) -> None:
    cells: Cells[str] = Cells(1000)
    plain: dict[str, list[object]] = {}
    n_made = 0
    for what, pick, n in changes:
        names = sorted(plain)
        name = names[pick % len(names)] if names else None
        if what == "grow" or name is None:
            if name is None or pick == 0:
                n_made += 1
                name = f"s{n_made}"
                plain[name] = []
            plain[name] += [object() for _ in range(n)]
            cells.grow(name, n)
        elif what == "share":
            n_made += 1
            n_cells = min(n, len(plain[name]))
            plain[f"s{n_made}"] = plain[name][:n_cells]
            cells.share(name, f"s{n_made}", n_cells)
        else:
            del plain[name]
            cells.drop(name)

        assert cells.used == len({id(cell) for held in plain.values() for cell in held})
        assert cells.free == 1000 - cells.used
