"""The program in an answer: which of its fenced blocks, and what that block needs of the others.

Nothing is run here: texts are parsed, and a text that is no Python defines nothing.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})[ \t]*(?:\{?\.?([\w+#-]*)[^`]*)?\r?$")
PYTHON = ("", "python", "py", "python3", "py3")
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
SCOPES = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
BODY = "    pass\n\n"  # ends a function that the prompt has begun


def answered_program(begin: str, names: Sequence[str], answer: str) -> str:
    """The program that defines these names: the benchmark's own text `begin`, and the answer.

    Without fences the whole answer goes on where `begin` ends. Else it is the last Python block
    that defines one of the names at its top level, or is the indented body of what `begin` has
    begun; the text before the first fence may be one too, where the prompt had opened it. From the
    other blocks come the imports, definitions and assignments that it uses and does not hold.
    """
    before, blocks = fenced_blocks(answer)
    if not blocks:
        return begin + answer
    texts = [text for language, text in blocks if language in PYTHON]
    candidates = [before, *texts]
    trees = [_parsed(text) for text in candidates]
    for place in reversed(range(len(candidates))):
        text, tree = candidates[place], trees[place]
        others = [other for number, other in enumerate(trees) if other and number != place]
        if tree is not None and _bound(tree.body) & set(names):
            known = _bound(opened.body) if (opened := _parsed(begin + BODY)) else set()
            needed = _needed(tree, others, set(names), known)
            return _joined(begin + BODY if begin else "", text, tree, needed)
        if begin and _is_body(begin, text):
            whole = _parsed(begin + text)
            assert whole is not None
            return _source(_needed(whole, others, set(), set())) + begin + text
    rest = [text for text in (*texts, before, blocks[-1][1]) if text.strip()]
    return begin + (texts[-1] if texts and texts[-1].strip() else rest[0] if rest else "")


def between_last_fences(answer: str) -> str:
    """What stands between the last two lines that hold three backticks; "" without two: how
    LiveCodeBench takes a program out of an answer.
    """
    lines = answer.split("\n")
    marks = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[marks[-2] + 1 : marks[-1]]) if len(marks) > 1 else ""


def fenced_blocks(answer: str) -> tuple[str, list[tuple[str, str]]]:
    """(what stands before the first fence, [(language, text) of each block]). A block without an
    end goes on to the next that names a language, or to the end of the answer.
    """
    before: list[str] = []
    blocks: list[tuple[str, list[str]]] = []
    fence, indent, into = "", "", before
    for line in answer.split("\n"):
        mark = FENCE.match(line)
        closes = mark and fence and mark[2].startswith(fence) and not mark[3]
        if mark and closes:
            fence, into = "", []
        elif mark and (not fence or mark[3]):
            indent, fence, into = mark[1], mark[2], []
            blocks.append(((mark[3] or "").lower(), into))
        else:
            into.append(line.removeprefix(indent) if fence else line)
    return "\n".join(before), [(language, "\n".join(lines)) for language, lines in blocks]


def _parsed(text: str) -> ast.Module | None:
    """None for what is no Python, or too deep for the parser."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _is_body(begin: str, text: str) -> bool:
    """Whether the text is indented, and Python where `begin` ends."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    return first.startswith((" ", "\t")) and _parsed(begin + text) is not None


def _joined(before: str, text: str, tree: ast.Module, needed: list[ast.stmt]) -> str:
    """The needed statements, `before` and the text; imports of __future__ come first of all."""
    future = [node for node in tree.body if _is_future(node)]
    if future and (before or needed):
        needed = [*future, *needed]
        text = _source([node for node in tree.body if node not in future]) or text
    return _source(needed) + before + text


def _source(statements: list[ast.stmt]) -> str:
    """Their text; "" where they are too deep to be written."""
    try:
        return "".join(f"{ast.unparse(statement)}\n" for statement in statements)
    except (RecursionError, ValueError):
        return ""


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


# ---- names ----


@dataclass(frozen=True)
class _Statement:
    """A statement at the top of a block that may be taken over, and the names that it binds."""

    node: ast.stmt
    binds: frozenset[str]


def _needed(
    tree: ast.Module, others: Iterable[ast.Module], names: set[str], known: set[str]
) -> list[ast.stmt]:
    """The statements of other blocks, in their order, that bind the names under test or what `tree`
    uses, and what these use in turn; the last where several bind a name.
    """
    statements = [statement for other in others for statement in _statements(other)]
    have = _bound(tree.body) | known
    wanted = names - have  # of which one may be called as a built-in function is
    have |= set(vars(builtins))
    wanted |= _used(tree) - have
    taken: set[int] = set()
    while wanted:
        name = wanted.pop()
        have.add(name)
        for number in reversed(range(len(statements))):
            if name in statements[number].binds:
                taken.add(number)
                have |= statements[number].binds
                wanted = (wanted | _used(statements[number].node)) - have
                break
        else:  # perhaps one of those that import all
            taken |= {n for n, statement in enumerate(statements) if "*" in statement.binds}
    return [statements[number].node for number in sorted(taken)]


def _statements(tree: ast.Module) -> Iterator[_Statement]:
    kinds = (*DEFINITIONS, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for node in tree.body:
        if isinstance(node, kinds) and not _is_future(node):
            yield _Statement(node, frozenset(_bound([node])))


def _bound(body: Iterable[ast.stmt]) -> set[str]:
    """The names that these statements bind where they stand, not inside functions and classes."""
    names: set[str] = set()
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif not isinstance(node, SCOPES):
            waiting += ast.iter_child_nodes(node)
    return names


def _used(tree: ast.AST) -> set[str]:
    """The names that are read somewhere in it, and bound nowhere in it."""
    loaded: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, DEFINITIONS):
            bound.add(node.name)
    return loaded - bound
