"""scripts/sentences.py counts words as a reader would; test_habits.py has it measure README and documentation."""

from pathlib import Path

import pytest
from doc_pages import load_sentences

SCRIPT = load_sentences()


def test_text_is_split_into_sentences() -> None:
    text = (
        "# A heading is no sentence\n\nOne `piece of code` counts. A [link of four words](there.md) counts\n"
        "256. Not a list? No!\n\n- An item\n  of two lines.\n\n1. Two. Three.\n\n```sh\nno words here\n```\n\n"
        "    nor here\n\n| a cell | two words |\n|---|---|\n\n::: dim.generate\n"
    )
    found = [(prose, SCRIPT.split_sentences(block)) for prose, block in SCRIPT.split_blocks(text)]
    assert [sentences for prose, sentences in found if prose] == [
        ["One `code` counts.", "A link of four words counts 256.", "Not a list?", "No!"],
        ["An item of two lines."],
        ["Two.", "Three."],
    ]
    assert [len(sentences) for prose, sentences in found if not prose] == [1, 1, 0, 0]


def test_a_long_sentence_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("word " * 41 + "end.\n\nShort. Very short.\n")
    assert SCRIPT.main([str(page)]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "3 sentences, 15.0 words on average (at most 20), 1 over 40"
    page.write_text("word " * 24 + "end.\n")
    assert SCRIPT.main([str(page)]) == 1
    page.write_text("Short.\n")
    assert SCRIPT.main([str(page)]) == 0
