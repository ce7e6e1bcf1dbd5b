"""How the documents read: `python docs/prose.py` prints lines, words and sentence lengths, and what is too long."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = {"README.md": 250}
MOST_WORDS = {"ARCHITECTURE.md": 1500}
MOST_MEAN = {"README.md": 18.0, "ARCHITECTURE.md": 18.0}
"""Words a sentence."""
MOST_IN_A_ROW = 160
"""Characters of a table's line."""
REPLACED = re.compile(
    r"computed prompts?|set[- ]backs?\b|\bset back\b|yardstick|last[_ ]words|appraiser|price ?list"
    r"|\b(?:whoever|nobody|somebody|everybody|whom|first text|gap)\b",
    re.IGNORECASE,
)
"""Words of ours where the field has its own: prefix cache, preempted, baseline, crash reason, estimate, TTFT, ITL."""
UNAMBIGUOUS = re.compile(
    r"computed[ _]prompt|(?<![a-z])set[-_ ]back|yardstick|(?<![a-z])last[_ ]words|appraiser|price[_ ]?list"
    r"|(?<![a-z])(?:whoever|nobody|somebody|everybody|whom)(?![a-z])|conversations_disk|spare_worker|max_gap_ms"
    r"|(?<![a-z])(?:pricing|priced|unbooked)(?![a-z])",
    re.IGNORECASE,
)
"""Those of them that never mean anything else: in pages and in code, its comments, messages and names included."""
PAGES = ("docs/*.md", "docs/decisions/*.md", "deploy/*.yaml", "server/onecard.example.toml")
CODE = ("server", "backends", "quantize", "demo", "bench", "deploy", "tests")
SORTS = ["Added", "Changed", "Fixed"]
"""The headings of a version in CHANGELOG.md, in this order."""
MOST_IN_AN_ENTRY = 180
"""Characters."""
HELD = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md")


@dataclass(frozen=True)
class Prose:
    """One document, measured without its code and tables."""

    name: str
    n_lines: int
    n_words: int
    sentences: list[int]
    """Words of each."""

    @property
    def mean(self) -> float:
        """Words a sentence."""
        return sum(self.sentences) / max(1, len(self.sentences))


def measured(path: Path) -> Prose:
    """Lines and words of all of it, sentences of what is prose."""
    text = path.read_text()
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    blocks = re.split(r"\n\s*\n|\n(?=[-*#|] )|\n(?=\d+\. )", plain)
    prose = [block for block in blocks if block.strip() and not block.lstrip().startswith(("|", "#", "![", "    "))]
    sentences = [
        len(re.findall(r"[\w`]\S*", sentence))
        for block in prose
        for sentence in re.split(r"(?<=[.!?])[\s)]+", re.sub(r"\]\([^)]*\)", "]", block))
        if re.search(r"\w", sentence)
    ]
    return Prose(path.name, len(text.splitlines()), len(text.split()), sentences)


def problems(root: Path = ROOT) -> list[str]:
    """What is above its bound, as sentences."""
    found = []
    for name in HELD:
        path = root / name
        prose, text = measured(path), path.read_text()
        if prose.n_lines > (most := MOST_LINES.get(name, prose.n_lines)):
            found.append(f"{name} has {prose.n_lines} lines, at most {most}")
        if prose.n_words > (most := MOST_WORDS.get(name, prose.n_words)):
            found.append(f"{name} has {prose.n_words} words, at most {most}")
        if prose.mean > MOST_MEAN.get(name, 100.0):
            found.append(f"{name} has {prose.mean:.1f} words a sentence, at most {MOST_MEAN[name]:g}")
        found += [f"{name} says '{match[0]}'" for match in REPLACED.finditer(text)]
        if name == "README.md":
            rows = [line for line in text.splitlines() if line.startswith("|")]
            found += [f"{name}: a table's line of {len(row)} characters" for row in rows if len(row) > MOST_IN_A_ROW]
    return found


def unsorted(root: Path = ROOT) -> list[str]:
    """What of CHANGELOG.md is no entry of one line under one of three headings, as sentences."""
    found = []
    sorts: list[str] = []
    for number, line in enumerate((root / "CHANGELOG.md").read_text().splitlines(), 1):
        where = f"CHANGELOG.md, line {number}"
        if line.startswith("## "):
            sorts = []
        elif line.startswith("### "):
            sorts.append(line.removeprefix("### "))
            if sorts != [sort for sort in SORTS if sort in sorts]:
                found.append(f"{where}: the headings are {', '.join(SORTS)}, once each and in this order")
        elif line.startswith("- "):
            if not sorts or line.startswith(tuple(f"- {sort}:" for sort in SORTS)):
                found.append(
                    f"{where}: an entry stands below its heading (### {', ### '.join(SORTS)}), without a label"
                )
            if len(line) > MOST_IN_AN_ENTRY:
                found.append(f"{where}: an entry of {len(line)} characters, at most {MOST_IN_AN_ENTRY}")
        elif line.startswith(" "):
            found.append(f"{where}: an entry is one line; write two of them")
    return found


def old_words(root: Path = ROOT) -> list[str]:
    """Where a page or the code has a word of ours for which the field has its own, as sentences."""
    found = []
    for path in sorted(page for pattern in PAGES for page in root.glob(pattern)):
        found += [f"{path.relative_to(root)} says '{match[0]}'" for match in _old(path.read_text())]
    for path in sorted(file for top in CODE for file in (root / top).rglob("*.py")):
        found += [f"{path.relative_to(root)} says '{match[0]}'" for match in _old(path.read_text())]
    return found


def _old(text: str) -> list[re.Match[str]]:
    return list(UNAMBIGUOUS.finditer(" ".join(text.split())))


def main() -> int:
    """Exit code 1 where something is above its bound."""
    for name in HELD:
        prose = measured(ROOT / name)
        print(f"{name}: {prose.n_lines} lines, {prose.n_words} words, {prose.mean:.1f} words a sentence")
    for problem in (found := [*problems(), *unsorted(), *old_words()]):
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
