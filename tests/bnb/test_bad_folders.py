"""Folders that are broken or ask for more than they may: refused by name, and nothing in them is run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends.bnb.loading import load
from backends.engine import LoadError
from tests.models import broken_folders
from tests.specs import spec_of

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("case", broken_folders.TABLE)
def test_a_bad_folder_is_refused_with_its_files_name(tmp_path: Path, case: str) -> None:
    folder = broken_folders.make(case, tmp_path / "model")

    with pytest.raises(LoadError, match=broken_folders.TABLE[case][1]) as caught:
        load(spec_of("bad", "bnb", str(folder), context=256, parallel=1), lambda _: None)

    assert str(folder) not in caught.value.message


WATCHED = """
import sys
from backends.bnb import loading
from backends.engine import LoadError
from tests.specs import spec_of
seen = []
def hook(name, args):
    if name in ("subprocess.Popen", "os.system", "os.exec", "socket.connect") or (
        name in ("exec", "compile") and sys.argv[1] in str(args)
    ) or (name == "open" and str(args[0]).startswith(sys.argv[1]) and str(args[0]).endswith((".py", ".bin"))):
        seen.append(name)
sys.addaudithook(hook)
try:
    loading.load(spec_of("bad", "bnb", sys.argv[1], context=256, parallel=1), lambda _: None)
except LoadError as error:
    print(error.message)
print("seen", seen)
"""


def test_nothing_of_a_strangers_folder_is_run_opened_or_asked_for(folder: Path) -> None:
    broken_folders.own_code(folder)
    broken_folders.edit(
        folder, "config.json", trust_remote_code=True, _attn_implementation_internal="kernels-community/evil"
    )
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'echo pwned'\ntR.")

    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)], capture_output=True, text=True, timeout=120, check=True
    )

    assert "trust_remote_code" in done.stdout
    assert done.stdout.endswith("seen []\n")


def test_another_quantisation_than_the_stored_one_is_refused(folder: Path) -> None:
    broken_folders.edit(
        folder, "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}
    )
    spec = spec_of("bad", "bnb", str(folder), context=256, parallel=1, options={"quantization": "bnb-8bit"})

    with pytest.raises(LoadError, match=r"stored in 4 bits.*hint"):
        load(spec, lambda _: None)
