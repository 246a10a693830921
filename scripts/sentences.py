#!/usr/bin/env python3
"""Say how long the sentences of README and the documentation are; fail where they are too long to read.

The mean is taken over paragraphs and lists. Cells of tables are no prose, so they only have to keep the limit.

python scripts/sentences.py [FILE ...]
"""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
MAX_MEAN_WORDS = 20
MAX_WORDS = 40
_ITEM = re.compile(r"^\s*(?:[-*+]|\d\.)\s+")
_END = re.compile(r"(?<=[.!?])[\"')*_]*\s+(?=[\"'(*_`\[]*[A-Z0-9`])")
_SHORT = re.compile(r"\b(e\.g|i\.e|cf|vs|al|Fig|Sec)\.")


def find_pages() -> list[Path]:
    """List the README and every page of the documentation, those that scripts write too."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def split_blocks(text: str) -> Iterator[tuple[bool, str]]:
    """Yield each paragraph, item of a list and cell of a table, as whether it is prose and its text on one line."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^[ ]*(```|~~~).*?^[ ]*\1[ ]*$", "\n", text, flags=re.DOTALL | re.MULTILINE)
    block: list[str] = []
    blank = True
    for line in [*text.splitlines(), ""]:
        bare = line.strip()
        if line.startswith("    ") and not block and blank and not _ITEM.match(line):
            continue  # code by its indent
        blank = not bare or bare.startswith("#")
        begins = not bare or bare.startswith(("#", "|", ":::", "!!!", "<")) or _ITEM.match(line)
        if begins and block:
            yield True, " ".join(block)
            block = []
        if bare.startswith("|"):
            yield from ((False, cell) for cell in re.split(r"(?<!\\)\|", bare.strip("|")))
        elif bare and not bare.startswith(("#", ":::", "!!!", "<")):
            block.append(_ITEM.sub("", line).strip().removeprefix("> "))


def split_sentences(block: str) -> list[str]:
    """Split a block at full stops, as text without Markdown; a piece of code is one word."""
    block = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", block)
    block = re.sub(r"(`+).+?\1", "`code`", block)
    block = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", block)
    block = re.sub(r"https?://\S+", "address", _SHORT.sub(r"\1", block))
    return [sentence for sentence in _END.split(block) if count_words(sentence)]


def count_words(sentence: str) -> int:
    """Count what has a letter or a digit in it."""
    return sum(bool(re.search(r"\w", word)) for word in sentence.split())


def measure(pages: Sequence[Path]) -> tuple[list[int], list[tuple[Path, int, str]]]:
    """Return the lengths of all sentences of prose, and the sentences that are over the limit with page and length."""
    lengths, long = [], []
    for page in pages:
        for is_prose, block in split_blocks(page.read_text(encoding="utf-8")):
            for sentence in split_sentences(block):
                words = count_words(sentence)
                if is_prose:
                    lengths.append(words)
                if words > MAX_WORDS:
                    long.append((page, words, sentence.strip()))
    return lengths, long


def main(arguments: Sequence[str]) -> int:
    """Print the mean and every sentence over the limit; returns the exit code."""
    lengths, long = measure([Path(argument).resolve() for argument in arguments] or find_pages())
    for page, words, sentence in long:
        shown = page.relative_to(ROOT) if page.is_relative_to(ROOT) else page
        print(f"{shown}: {words} words: {sentence}")
    count, mean = len(lengths), sum(lengths) / max(1, len(lengths))
    print(f"{count} sentences, {mean:.1f} words on average (at most {MAX_MEAN_WORDS}), {len(long)} over {MAX_WORDS}")
    return int(bool(long) or mean > MAX_MEAN_WORDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
