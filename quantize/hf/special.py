"""Special tokens, whether a prompt gets them by itself, fill-in-the-middle tokens, and the chat template."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import gguf

from quantize.hf.reference import Reference
from quantize.hf.source import read_json
from quantize.hf.vocabulary import HfVocabulary

_FIM: Final = {
    "prefix": ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<|code_prefix|>", "<PRE>"),
    "suffix": ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<|code_suffix|>", "<SUF>"),
    "middle": ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<|code_middle|>", "<MID>"),
    "pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>"),
    "repository": ("<|repo_name|>", "<|fim_repo|>", "<reponame>"),
    "separator": ("<|file_sep|>",),
}
_FIM_KEYS: Final = {
    "prefix": "tokenizer.ggml.fim_pre_token_id",
    "suffix": "tokenizer.ggml.fim_suf_token_id",
    "middle": "tokenizer.ggml.fim_mid_token_id",
    "pad": "tokenizer.ggml.fim_pad_token_id",
    "repository": "tokenizer.ggml.fim_rep_token_id",
    "separator": "tokenizer.ggml.fim_sep_token_id",
}


def write_special(writer: Any, path: Path, vocabulary: HfVocabulary, reference: Reference | None) -> None:
    """Ids and flags of special tokens, by what the files say and what the tokenizer does."""
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = gguf.SpecialVocab(path, n_vocab=len(vocabulary.tokens))
    if reference is not None:
        first, last = reference.added_first, reference.added_last
        special.add_special_token = {"bos": first is not None, "eos": last is not None}
        ids = special.special_token_ids
        if vocabulary.kind == "bert":
            for names, token in ((("bos", "cls"), first), (("eos", "sep"), last)):
                ids.update({name: token for name in names if token is not None})
        else:
            if first is not None:
                ids["bos"] = first
            if last is not None and last != ids.get("eos"):
                # llama.cpp adds its end token, so that has to be what tokenizer.json adds (llama.cpp 14252)
                if "eos" in ids:
                    ids.setdefault("eot", ids["eos"])
                ids["eos"] = last
    special.add_to_gguf(writer, quiet=True)
    _write_more_ends(writer, path, special.special_token_ids, len(vocabulary.tokens))
    at = {token: index for index, token in enumerate(vocabulary.tokens)}
    for role, spellings in _FIM.items():
        if (found := next((at[name] for name in spellings if name in at), None)) is not None:
            writer.add_uint32(_FIM_KEYS[role], found)


def _write_more_ends(writer: Any, path: Path, ids: dict[str, int], n_tokens: int) -> None:
    """A model may end its turn with several tokens (generation_config.json): the second and third as eot and eom."""
    ends = (read_json(path / "generation_config.json") or {}).get("eos_token_id")
    if not isinstance(ends, list):
        return
    valid = (end for end in ends if isinstance(end, int) and 0 <= end < n_tokens and end != ids.get("eos"))
    for name, end in zip(("eot", "eom"), valid, strict=False):
        if name not in ids:
            getattr(writer, f"add_{name}_token_id")(end)
