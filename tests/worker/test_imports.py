"""How an engine's module is imported: without the collector, which is afterwards as it was."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest

from backends import registry


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("ending", ["", "raise ImportError('broken')"])
def test_the_collector_rests_while_a_module_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: bool, ending: str
) -> None:
    name = f"imported_{enabled}_{bool(ending)}"
    seen = tmp_path / "seen"
    (tmp_path / f"{name}.py").write_text(
        f"import gc, pathlib\npathlib.Path({str(seen)!r}).write_text(str(gc.isenabled()))\nthing = 1\n{ending}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (gc.enable if enabled else gc.disable)()
    try:
        if ending:
            with pytest.raises(ImportError, match="broken"):
                registry.named(f"{name}:thing")
        else:
            assert registry.named(f"{name}:thing") == 1
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
        sys.modules.pop(name, None)

    assert seen.read_text() == "False"
