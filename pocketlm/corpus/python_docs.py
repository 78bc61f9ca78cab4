"""Text that comes with every Python: the library's source, its docstrings, and the language
reference.

What it says depends on the Python version. Modules are read as files, never imported; their order
is that of a hash of the name, so that a byte cap takes a fair sample rather than the first letters
of the alphabet.
"""

import ast
import hashlib
import inspect
import os
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from pocketlm.corpus.documents import Document

# tests and tools of the distribution, tables (encodings, topics), and what is not the library's
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "site-packages",
    "dist-packages",
    "ensurepip",
    "encodings",
    "pydoc_data",
}
TOO_LONG_SIGNATURE = 120  # characters; a longer one is a table of defaults


def read_stdlib_code() -> Iterator[Document]:
    """One document a module."""
    for name, path in _modules():
        yield Document(id=name, text=_source(path))


def read_stdlib_docstrings() -> Iterator[Document]:
    """One document a module: its docstring, then each public definition's under its signature."""
    for name, path in _modules():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old modules
            tree = ast.parse(_source(path))
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        text = "\n\n".join(_sections(tree, module))
        if text:
            yield Document(id=module, text=text)


def read_language_reference() -> Iterator[Document]:
    """One document a topic of the language reference, as `help()` prints it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError(
            "this Python comes without pydoc_data.topics, its language reference; leave the source "
            "out"
        ) from None
    for name in sorted(topics):
        yield Document(id=name, text=topics[name].strip() + "\n")


def _modules() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_path("stdlib"))
    kept = []
    for folder, below, files in os.walk(root):
        # not walked at all: site-packages is large
        below[:] = [name for name in below if name not in LEFT_OUT]
        kept += [
            (Path(folder) / name).relative_to(root).as_posix()
            for name in files
            if name.endswith(".py")
        ]
    return [
        (name, root / name)
        for name in sorted(kept, key=lambda name: hashlib.blake2b(name.encode()).digest())
    ]


def _source(path: Path) -> str:
    with tokenize.open(path) as file:  # in the encoding that the file's first lines declare
        return file.read()


def _sections(node: ast.Module | ast.ClassDef, name: str) -> Iterator[str]:
    text = ast.get_docstring(node)
    if text:
        yield f"{_heading(node, name)}\n\n{text}"
    for child in node.body:
        if not isinstance(
            child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            yield from _sections(child, f"{name}.{child.name}")
        elif text := ast.get_docstring(child):
            yield f"{_heading(child, f'{name}.{child.name}')}\n\n{inspect.cleandoc(text)}"


def _heading(node: ast.AST, name: str) -> str:
    if isinstance(node, ast.Module):
        return f"module {name}"
    if isinstance(node, ast.ClassDef):
        return f"class {name}"
    assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    signature = ast.unparse(node.args)
    return f"{name}({signature if len(signature) <= TOO_LONG_SIGNATURE else '...'})"
