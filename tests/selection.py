"""Which files a run imports at all, and which it begins with: importing both engines' libraries takes half a minute."""

from __future__ import annotations

import re

WITHOUT_ENGINE, WITH_ENGINE = "not engine and not gpu", "engine and not gpu"
"""What `make test` runs, one behind the other."""
LONGEST = (
    "tests/cli/test_serve.py",
    "tests/cli/test_serve_ends.py",
    "tests/scheduler/test_random_walk.py",
    "tests/http/test_endings.py",
    "tests/speech/test_server.py",
    "tests/cli/test_outputs.py",
    "tests/cli/test_card.py",
    "tests/cli/test_reload.py",
    "tests/http/test_time_limit.py",
    "tests/http/test_door.py",
    "tests/surfaces/test_docs.py",
    "tests/deploy/test_image.py",
    "tests/cli/test_config.py",
    "tests/cli/test_run.py",
    "tests/hub/test_pull.py",
    "tests/many/test_many.py",
    "tests/draw/test_edits.py",
    "tests/speech/test_clients.py",
    "tests/deploy/test_bundle.py",
    "tests/test_documents.py",
    "tests/test_exceptions.py",
    "tests/e2e/test_faults.py",
    "tests/quantize/test_scores.py",
    "tests/bnb/test_shortage.py",
    "tests/gguf/test_prefix_walk.py",
    "tests/quantize/test_command.py",
    "tests/e2e/test_conversations.py",
    "tests/constraints/test_demo.py",
    "tests/quantize/test_bnb.py",
    "tests/embeddings/test_http.py",
    "tests/e2e/test_storm.py",
    "tests/quantize/test_quantizer.py",
    "tests/training/test_process.py",
    "tests/draw/test_demo_draw.py",
    "tests/draw/test_image_tool.py",
    "tests/seeing/test_pass.py",
    "tests/tuning/test_taught_whole.py",
    "tests/embeddings/test_vectors.py",
    "tests/embeddings/test_bench.py",
    "tests/bnb/test_engine.py",
    "tests/adapters/test_serving.py",
    "tests/draw/test_transformers.py",
    "tests/quantize/test_conversion.py",
    "tests/draw/test_packed.py",
    "tests/e2e/test_mutants.py",
    "tests/gguf/test_fragments.py",
    "tests/estimates/test_folder_memory.py",
    "tests/gguf/test_replayed.py",
    "tests/gguf/test_checkpoints.py",
    "tests/e2e/test_answers.py",
    "tests/seeing/test_shortage.py",
    "tests/quantize/test_stored_tensors.py",
    "tests/e2e/test_shortage.py",
    "tests/estimates/test_folders.py",
    "tests/seeing/test_folder_types.py",
    "tests/bnb/test_architectures.py",
    "tests/e2e/test_cut_calls.py",
    "tests/e2e/test_sdk.py",
    "tests/gguf/test_scoring.py",
    "tests/real/test_smollm2.py",
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
