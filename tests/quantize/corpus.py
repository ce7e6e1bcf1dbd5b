"""A multilingual corpus made from fragments: prose, code, emoji, CJK, whitespace runs; the same lines every time."""

from __future__ import annotations

import random

PROSE = [
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they'll say we've seen it; he'd rather not, you're right.",
    "Der Fluß fließt durch die Straße, über Brücken und Gärten.",
    "L'été dernier, nous étions à la plage près de Nîmes.",
    "El niño comió piñas mañana por la noche, ¿verdad?",
    "Zażółć gęślą jaźń, pchnąć w tę łódź jeża.",
    "Příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί.",
    "Pijamalı hasta yağız şoföre çabucak güvendi.",
    "敏捷的棕色狐狸跳过了懒狗。",
    "今天天气很好,我们去公园散步吧!",
    "いろはにほへと ちりぬるを",
    "東京タワーは333メートルです。",
    "키스의 고유조건은 입술끼리 만나야 한다",
    "السلام عليكم ورحمة الله وبركاته",
    "שלום לכולם, מה שלומכם היום?",
    "नमस्ते, आप कैसे हैं?",
    "สวัสดีครับ วันนี้อากาศดีมาก",
    "Tiếng Việt có nhiều dấu thanh điệu phức tạp.",
]
CODE = [
    "def f(x: int) -> str:",
    '    return f"{x!r:>10}"  # comment',
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; }",
    "SELECT * FROM t WHERE a <> 'x' AND b >= 10;",
    'if err != nil { return nil, fmt.Errorf("bad: %w", err) }',
    "const add = (a, b) => a + b;",
    '<div class="row">&nbsp;<b>text</b></div>',
    '\tprintf("%d\\n", value);',
    "import numpy as np; np.zeros((3, 4))[1:, ::-1]",
    "git commit -m 'fix: #123' && make -j8",
    '{"key": [1, 2.5, null, true]}',
    "x = y**2 // 3 % 7 ^ ~z | w & 0xFF",
    "#include <stdio.h>",
    "let mut v: Vec<u8> = vec![0; 16];",
    "C:\\path\\file.txt ~/dir/*.py",
]
SIGNS = [
    "😀",
    "🚀🌍",
    "👩🏽‍💻",
    "🏳️‍🌈",
    "é",
    "1",
    "42",
    "007",
    "3.14",
    "1,000,000",
    "2024-12-31",
    "100%",
    "$5",
    "€99",
    "...",
    "!!!",
    "?!",
    "--",
    "==>",
    "'''",
    "``",
    "_x_",
    "A1B2",
    "ß",
    "Ω",
    "√2",
    "½",
    "①",
    "x²",
    "•",
    "—",
    "“q”",
    "…",
    "user@mail.org",
    "http://a.b/c?d=e",
]
SPACES = [" ", "  ", "   ", "\t", "\t\t", "     ", "        ", " \t ", "\n", "\n\n", " \n  \n", "\r\n"]


def lines(n: int, *, seed: int = 7) -> list[str]:
    """`n` different lines."""
    pick = random.Random(seed)
    found: dict[str, None] = dict.fromkeys([*PROSE, *CODE, *SIGNS])
    while len(found) < n:
        found[_line(pick)] = None
    return list(found)[:n]


def _line(pick: random.Random) -> str:
    parts = []
    for _ in range(pick.randint(2, 6)):
        source = pick.choice([PROSE, PROSE, CODE, SIGNS])
        text = pick.choice(source)
        words = text.split(" ")
        start = pick.randrange(len(words))
        parts.append(" ".join(words[start : start + pick.randint(1, 6)]))
        parts.append(pick.choice(SPACES) if pick.random() < 0.4 else " ")
    return ("" if pick.random() < 0.8 else pick.choice(SPACES)) + "".join(parts[:-1])
