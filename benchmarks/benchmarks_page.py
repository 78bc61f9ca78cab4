"""docs/results/benchmarks.md from folders that `pocketlm eval --out` left.

python benchmarks/benchmarks_page.py FOLDER... [--out docs/results/benchmarks.md]

A file note.md in a folder stands under its heading: what the models are.
"""

import argparse
from pathlib import Path

from pocketlm.model.files import write_text
from pocketlm.report.benchmarks_page import benchmarks_page
from pocketlm.report.evaluation import read_evaluation

NOTE = "note.md"


def main() -> None:
    """Write the page; a folder's name is its heading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--out", type=Path, default=Path("docs/results/benchmarks.md"))
    arguments = parser.parse_args()
    names = [folder.name for folder in arguments.folders]
    if len(set(names)) != len(names):
        parser.error(f"two folders have one name: {', '.join(names)}; rename one")
    try:
        notes = {
            folder.name: (folder / NOTE).read_text(encoding="utf-8")
            for folder in arguments.folders
            if (folder / NOTE).is_file()
        }
        evaluations = {folder.name: read_evaluation(folder) for folder in arguments.folders}
        page = benchmarks_page(evaluations, notes)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    write_text(arguments.out, page)


if __name__ == "__main__":
    main()
