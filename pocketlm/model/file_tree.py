"""The files below a folder, those behind links too."""

import os
from pathlib import Path


def files_below(folder: Path) -> tuple[list[Path], dict[Path, str]]:
    """(files in the order of their names, {what else lies there: why it is no file to read}).

    Linked folders are followed, each folder once: one that leads to a folder walked already, as a
    circle does, is reported as "linked_folder_seen_already". The folder's own folders come before
    links to them.
    """
    files: list[Path] = []
    others: dict[Path, str] = {}
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], []
    while folders or links:
        at = folders.pop() if folders else links.pop(0)
        try:
            status = at.stat()
            if (status.st_dev, status.st_ino) in seen:
                others[at] = "linked_folder_seen_already"
                continue
            seen.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(at), key=lambda entry: entry.name)
        except PermissionError:
            others[at] = "folder_without_permission"
            continue
        for entry in entries:
            path = at / entry.name
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append(path)
            elif entry.is_file():
                files.append(path)
            else:
                others[path] = "link_to_nothing" if entry.is_symlink() else "no_file_of_content"
    return sorted(files), dict(sorted(others.items()))
