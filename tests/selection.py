"""Which files a run imports at all, and which it begins with: importing both engines' libraries takes half a minute."""

from __future__ import annotations

import re

WITHOUT_ENGINE, WITH_ENGINE = "not engine and not gpu", "engine and not gpu"
"""What `make test` runs, one behind the other."""
LONGEST = (
    "tests/draw/test_bytes.py",
    "tests/deploy/test_image.py",
    "tests/cli/test_outputs.py",
    "tests/cli/test_serve.py",
    "tests/cli/test_run.py",
    "tests/speech/test_server.py",
    "tests/test_layering.py",
    "tests/echo/test_echo.py",
    "tests/draw/test_images.py",
    "tests/test_documents.py",
    "tests/speech/test_clients.py",
    "tests/scheduler/test_random_walk.py",
    "tests/many/test_many.py",
    "tests/cli/test_chat.py",
    "tests/draw/test_sources.py",
    "tests/many/test_shortage.py",
    "tests/formats/test_reading.py",
    "tests/pool/test_pool.py",
    "tests/cli/test_finding.py",
    "tests/speech/test_voice.py",
    "tests/http/test_time_limit.py",
    "tests/cli/test_serve_ends.py",
    "tests/cli/test_fit_elsewhere.py",
    "tests/page/test_open.py",
    "tests/test_dead_code.py",
    "tests/http/test_endings.py",
    "tests/tuning/test_disk.py",
    "tests/tuning/test_yielding.py",
    "tests/http/test_door.py",
    "tests/draw/test_edits.py",
    "tests/e2e/test_capabilities.py",
    "tests/hub/test_pull.py",
    "tests/deploy/test_bundle.py",
    "tests/cli/test_reload.py",
    "tests/draw/test_swap.py",
    "tests/draw/test_joint_bytes.py",
    "tests/e2e/test_faults.py",
    "tests/quantize/test_scores.py",
    "tests/bnb/test_shortage.py",
    "tests/e2e/test_conversations.py",
    "tests/embeddings/test_http.py",
    "tests/real/test_smollm2.py",
    "tests/quantize/test_bad_input.py",
    "tests/gguf/test_prefix_walk.py",
    "tests/quantize/test_command.py",
    "tests/bnb/test_engine.py",
    "tests/e2e/test_growth.py",
    "tests/training/test_process.py",
    "tests/tuning/test_taught_whole.py",
    "tests/quantize/test_conversion.py",
    "tests/e2e/test_sdk.py",
    "tests/quantize/test_quantizer.py",
    "tests/gguf/test_checkpoints.py",
    "tests/draw/test_demo_draw.py",
    "tests/gguf/test_replayed.py",
    "tests/constraints/test_demo.py",
    "tests/draw/test_packed.py",
    "tests/draw/test_adapters.py",
    "tests/quantize/test_bnb.py",
    "tests/seeing/test_pass.py",
    "tests/e2e/test_storm.py",
    "tests/adapters/test_serving.py",
    "tests/quantize/test_tokenization.py",
    "tests/seeing/test_demo_vision.py",
    "tests/embeddings/test_vectors.py",
    "tests/embeddings/test_bench.py",
    "tests/gguf/test_draft_model.py",
    "tests/seeing/test_walk.py",
    "tests/page/test_senses.py",
    "tests/e2e/test_cut_calls.py",
    "tests/seeing/test_shortage.py",
    "tests/seeing/test_folder_types.py",
    "tests/pool/test_store_in_the_ledger.py",
    "tests/estimates/test_folder_memory.py",
    "tests/gguf/test_engine.py",
    "tests/gguf/test_prefixes.py",
)
"""Files that take longest, the longest first: begun last, they would keep one worker busy while the others idle."""
_WHOLE = re.compile(r"^pytestmark = pytest\.mark\.engine$", re.MULTILINE)


def holds_none(source: str, marks: str) -> bool:
    """Whether this `-m` selects no test of a file with this text; only for the two that `make test` uses."""
    if marks == WITHOUT_ENGINE:
        return _WHOLE.search(source) is not None
    return marks == WITH_ENGINE and "mark.engine" not in source


def place(file: str) -> int:
    """Files with a lower one are begun before others."""
    return LONGEST.index(file) if file in LONGEST else len(LONGEST)
