"""What tiny.py reads."""

import json
from pathlib import Path
from random import Random

VERBS = ("returns", "reads", "writes", "keeps", "counts", "drops", "sorts", "joins")
NOUNS = ("line", "file", "list", "table", "number", "name", "folder", "value", "record", "key")


def write_documents(folder: Path) -> Path:
    """The folder, with texts/ of every plain kind of file, and exam.jsonl, a suite of six
    problems.
    """
    (folder / "texts").mkdir()
    words = Random(1)

    def sentence() -> str:
        return (
            f"It {words.choice(VERBS)} the {words.choice(NOUNS)} of each {words.choice(NOUNS)} "
            f"{words.randrange(99)}."
        )

    def text() -> str:
        return "\n".join(" ".join(sentence() for _ in range(4)) for _ in range(3))

    (folder / "texts" / "notes.txt").write_text(text())
    (folder / "texts" / "readme.md").write_text(f"# Notes\n\n{text()}")
    code = "\n\n".join(
        f'def f{n}(x):\n    """{sentence()}"""\n    return x + {n}' for n in range(12)
    )
    (folder / "texts" / "code.py").write_text(code)
    (folder / "texts" / "rows.jsonl").write_text(
        "".join(json.dumps({"text": text()}) + "\n" for _ in range(40))
    )
    exam = [{"prompt": f"What is {n} plus {n + 4}?", "answer": str(2 * n + 4)} for n in range(6)]
    (folder / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in exam))
    return folder
