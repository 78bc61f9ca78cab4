"""Rows of Hugging Face datasets, streamed: a whole split, or one of its files."""

from collections.abc import Iterator, Mapping
from typing import Any

HUB_FILE_BYTES = 256_000_000  # of a file whose size is not asked: most sets are cut so
Dataset = tuple[str, str | None, str, str | None]  # dataset, config, split, revision


def open_hub(dataset: str, config: str | None, split: str, revision: str | None) -> Any:
    """The split as `datasets` streams it."""
    try:
        import datasets
    except ImportError:
        raise ValueError(
            "reading the Hugging Face hub needs the datasets package: pip install datasets"
        ) from None
    return datasets.load_dataset(dataset, config, split=split, revision=revision, streaming=True)


def count_files(where: str, dataset: Dataset) -> int:
    """Of how many files the split is; 1 where `datasets` cannot tell. ValueError where the hub does
    not answer.
    """
    try:
        return getattr(open_hub(*dataset), "num_shards", 1)
    except Exception as error:  # network, hub and file-format libraries each raise their own kinds
        raise ValueError(f"{where} cannot be opened: {_reason(error)}; run again") from error


def hub_rows(
    where: str, dataset: Dataset, file: int = 0, count: int = 1, rows: Any = None
) -> Iterator[Mapping[str, Any]]:
    """The rows of file number `file` of `count`. ValueError says after which row reading failed."""
    number = 0
    try:
        rows = open_hub(*dataset) if rows is None else rows
        for row in rows if count == 1 else rows.shard(num_shards=count, index=file):
            number += 1
            yield dict(row)
    except Exception as error:
        raise ValueError(
            f"{where} failed after row {number}: {_reason(error)}; run again, finished sources are "
            "kept"
        ) from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
