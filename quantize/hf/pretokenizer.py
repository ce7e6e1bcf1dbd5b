"""Which of llama.cpp's pre-tokenizers splits text as this tokenizer does, found by letting both tokenize.

llama.cpp's own converter knows tokenizers by the hash of one output and refuses every other; here a candidate is right
when its tokens are. A child process does it, because the vocabulary is a stranger's.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantize.errors import QuantizeError
from quantize.hf.reference import Reference
from quantize.hf.vocabulary import HfVocabulary
from quantize.words import nearest, shown

PROBE_TIMEOUT_S: Final = 300.0

CANDIDATES: Final = (
    "gpt-2",
    "llama-bpe",
    "qwen2",
    "tekken",
    "gpt-4o",
    "smollm",
    "starcoder",
    "deepseek-llm",
    "deepseek-coder",
    "deepseek-v3",
    "falcon",
    "command-r",
    "dbrx",
    "stablelm2",
    "olmo",
    "mpt",
    "refact",
    "phi-2",
    "codeshell",
    "jais",
    "qwen35",
    "llama4",
    "pixtral",
    "hunyuan",
    "kimi-k2",
    "superbpe",
    "seed-coder",
    "bailingmoe",
    "exaone",
    "exaone4",
    "minimax-m2",
    "youtu",
    "chatglm-bpe",
    "glm4",
    "poro-chat",
    "viking",
    "bloom",
    "gpt3-finnish",
    "roberta-bpe",
    "trillion",
    "grok-2",
    "afmoe",
    "joyai-llm",
    "granite-docling",
    "tiny_aya",
    "jina-v2-es",
    "jina-v2-de",
)
"""tokenizer.ggml.pre values of llama.cpp, common ones first."""

PROBES: Final = (
    "Hello world",
    " Hello  world",
    "I'm sure you're right, they'll see we've told him he'd go.",
    "I'M SURE YOU'RE RIGHT, THEY'LL SEE WE'VE",
    "Zażółć gęślą jaźń",
    "naïve café Straße ÅÄÖ",
    "1 12 123 1234 12345 1234567890",
    "3.14159 and 2,718,281 and 1e-9",
    "x1y22z333",
    "def f(x):\n    return x**2 + 1  # square\n\n\nclass A:\n\tpass\n",
    "if (a != b) { c += d[0]; } // done\r\n\r\n",
    '<html>\n  <body class="x">&amp;</body>\n</html>',
    "a\tb\t\tc\t\t\td",
    "   leading",
    "trailing   ",
    "\n",
    "\n\n",
    "\n\n\n\n",
    " \n \n\n  \n",
    "a\n b\n  c\n   d",
    "......!!!!!!??????",
    "'''''' ``````",
    "-->==>::=||&&",
    "你好,世界!今天天气怎么样?",
    "こんにちは、世界。カタカナとひらがな",
    "안녕하세요 세계 여러분",
    "Привет, мир! Ёлки-палки",
    "مرحبا بالعالم",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε",
    "កាន់តែពិសេសអាច",
    "🚀🌍 emoji 😀😃👨‍👩‍👧‍👦🏳️‍🌈 end",
    "mixed中文and英語text123数字",
    "URL https://example.org/a_b-c?d=1&e=2#f",
    "snake_case camelCase PascalCase SCREAMING_CASE",
    "$100 €50 £20 ¥1000 50% #1 @you",
    "½ ² ③ Ⅳ ٣",
    "“quotes” ‘single’ — dash … dots",
    "日本2024年12月31日",
    "email@test.co.uk",
    "_ __ ___ ____ *a* **b**",
    "HTTPServer2XMLParser",
)
"""Each line separates some candidates from others."""


@dataclass(frozen=True)
class Match:
    """What the comparison found."""

    pre: str
    n_wrong: int
    """Probe lines whose tokens differ."""


def recognise(vocabulary: HfVocabulary, reference: Reference, vocab_file: Path, *, wanted: str | None) -> Match:
    """The right value of tokenizer.ggml.pre; `vocab_file` is a GGUF with this vocabulary and no tensors.

    Raises QuantizeError when none is right and `wanted` does not say which to take all the same.
    """
    if wanted is not None and vocabulary.kind == "gpt2" and wanted not in CANDIDATES:
        near = nearest(wanted, CANDIDATES)
        hint = f" hint: {near}" if near else ""
        raise QuantizeError(f"the pre-tokenizer {shown(wanted)} is not known.{hint}", usage=True)
    candidates = _ordered(reference) if vocabulary.kind == "gpt2" else ["default"]
    if wanted is not None:
        candidates = [wanted]
    expected = [reference.tokens(line) for line in PROBES]
    wrong = _probe(vocab_file, candidates, expected)
    best = min(wrong, key=lambda name: wrong[name])
    if wrong[best] and vocabulary.kind == "gpt2" and wanted is None:
        raise QuantizeError(
            f"this tokenizer splits text as none of llama.cpp's pre-tokenizers; nearest is {best}, "
            f"which differs on {wrong[best]} of {len(PROBES)} probe lines. hint: --pre-tokenizer {best} takes it"
        )
    return Match(best, wrong[best])


def _ordered(reference: Reference) -> list[str]:
    """Candidates, likely ones first: the regular expression of tokenizer.json gives them away."""
    split = str(json.loads(reference.tokenizer.to_str()).get("pre_tokenizer"))
    signs = (
        ("gpt-4o" if "{1,3}" in split else "tekken", "p{Lu}"),
        ("llama-bpe", "N}{1,3}"),
        ("qwen2", "p{N}|"),
        ("starcoder", "Digits"),
        ("gpt-2", "ByteLevel"),
    )
    likely = [name for name, sign in signs if sign in split]
    return [*likely, *(name for name in CANDIDATES if name not in likely)]


def _probe(vocab_file: Path, candidates: list[str], expected: list[list[int]]) -> dict[str, int]:
    """Wrong lines per candidate tried; the child stops at the first that has none."""
    request = {"file": str(vocab_file), "candidates": candidates, "lines": PROBES, "expected": expected}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "quantize.hf.probe_main"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise QuantizeError(f"llama.cpp did not read this vocabulary within {PROBE_TIMEOUT_S:.0f} s") from None
    answer: Any = json.loads(done.stdout) if done.returncode == 0 and done.stdout else None
    if not isinstance(answer, dict) or not answer:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise QuantizeError(f"llama.cpp cannot read this vocabulary: {last[:200]}")
    return {str(name): int(n) for name, n in answer.items()}
