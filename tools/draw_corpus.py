"""Draws texts to train an adapter on from what corpus.py has gathered, mixed by language.

usage: draw_corpus.py FOLDER OUT.jsonl [SEED]

Writes JSON lines with a `text` and its `language` each: so many megabytes of every language, no package more than an eighth of its language,
in an order that the seed gives.
"""
import json, random, sys
from collections import defaultdict
from pathlib import Path

MEGABYTES = {"Python": 26, "Rust": 9, "TypeScript and JavaScript": 7, "C": 2, "Go": 2}
LANGUAGES = {
    ".py": "Python", ".rs": "Rust", ".c": "C", ".h": "C", ".go": "Go",
    **dict.fromkeys([".ts", ".tsx", ".js", ".mjs"], "TypeScript and JavaScript"),
}
LARGEST_SHARE = 1 / 8


def draw(paths, folder, n_bytes):
    """Texts of at most `n_bytes` together, from every package at most its share."""
    taken, of_package = 0, defaultdict(int)
    for path in paths:
        text, package = path.read_text(), path.relative_to(folder).parts[0]
        size = len(text.encode())
        if taken + size > n_bytes or of_package[package] + size > LARGEST_SHARE * n_bytes:
            continue
        taken += size
        of_package[package] += size
        yield text


def main():
    folder, out = Path(sys.argv[1]), Path(sys.argv[2])
    randomness = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    of_language = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in LANGUAGES:
            of_language[LANGUAGES[path.suffix]].append(path)
    texts = []
    for language, paths in sorted(of_language.items()):
        randomness.shuffle(paths)
        drawn = list(draw(paths, folder, MEGABYTES[language] * 10**6))
        print(f"{language}: {len(drawn)} texts, {sum(map(len, drawn)) / 1e6:.1f} MB", file=sys.stderr)
        texts += [{"text": text, "language": language} for text in drawn]
    randomness.shuffle(texts)
    with out.open("w") as lines:
        lines.writelines(json.dumps(text) + "\n" for text in texts)


main()
