"""How much of what is personal does `guard.pii` find, how much else does it take, and what does a comment cost?

    python bench/pii.py --data SPANS.jsonl

Each line of the data holds `text` and `spans`: [start, end, kind]. Kinds without a label (names, places) are left out.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections import Counter
from pathlib import Path

from millstream.guard.pii import personal, redact

KINDS = {
    "PHONE": "PHONE",
    "EMAIL": "EMAIL",
    "BANK_CARD": "CARD",
    "CARD": "CARD",
    "ID": "ID",
    "SSN": "ID",
    "IBAN": "IBAN",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--misses", action="store_true", help="print what was missed and what was taken in error")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.data.read_text().splitlines()]
    real: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    taken: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for row in rows:
        text = row["text"]
        spans = [(a, b, KINDS[kind]) for a, b, kind in row["spans"] if kind in KINDS]
        found = list(personal(text))
        for a, b, kind in spans:
            real[kind] += 1
            whole = any(c <= a and b <= d for c, d, _ in found)
            hit[kind] += whole
            if args.misses and not whole:
                print("missed", kind, repr(text[max(0, a - 30) : b]))
        for c, d, label in found:
            taken[label] += 1
            if not any(c < b and a < d for a, b, _ in spans):
                wrong[label] += 1
                if args.misses:
                    print("wrong ", label, repr(text[max(0, c - 30) : d]))
    print(f"{'label':8}{'real':>6}{'recall':>8}{'taken':>7}{'precision':>11}")
    for label in sorted(real):
        print(
            f"{label:8}{real[label]:6}{hit[label] / max(1, real[label]):8.3f}"
            f"{taken[label]:7}{1 - wrong[label] / max(1, taken[label]):11.3f}"
        )
    print("not labelled in the data:", {label: n for label, n in taken.items() if label not in real})
    texts = [row["text"] for row in rows]
    seconds = min(timeit.repeat(lambda: [redact(text) for text in texts], number=5, repeat=3)) / 5
    print(
        f"{seconds / len(texts) * 1e6:.1f} us a text of {sum(map(len, texts)) / len(texts):.0f} characters on average"
    )
    words = "A really great film, I loved every part of it and would go again"
    seconds = min(timeit.repeat(lambda: redact(words), number=20_000, repeat=3)) / 20_000
    print(f"{seconds * 1e6:.2f} us a text of {len(words)} characters with no digits and no @")


if __name__ == "__main__":
    main()
