"""Function calls that a model writes, compared with those that BFCL accepts.

The comparison is BFCL's (bfcl_eval/eval_checker/ast_eval/ast_checker.py, Python calls): the
function's name, no parameter too many or too few, each value of the stated type and among the
accepted ones. Nothing is run: an answer is parsed as Python and read as literals.
"""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Call = tuple[str, dict[str, Any]]  # name, arguments
TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
OPTIONAL = ""  # among accepted values: the parameter may be left out
IGNORED = re.compile(r"[ ,./\-_*^]")  # in texts, as upper case is
ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
LARGEST_POWER = 64  # 9**9**9 is no answer
LARGEST_NUMBER = 10**12


@dataclass(frozen=True)
class Expected:
    """functions: by name, their parameters as a JSON schema. accepted: for each call that is
    needed its name, and for each parameter the accepted values.
    """

    functions: Mapping[str, Mapping[str, Any]]
    accepted: tuple[tuple[str, Mapping[str, list[Any]]], ...]


def bfcl(problem: Any, completion: str) -> dict[str, float]:
    """ast: the calls are the accepted ones, in any order. no_call: nothing that can be read as
    calls.
    """
    calls = calls_in(completion)
    right = calls is not None and calls_match(calls, problem.expected)
    return {"ast": float(right), "no_call": float(calls is None)}


def calls_in(completion: str) -> list[Call] | None:
    """The calls of an answer "[name(a=1), ...]", brackets or a code fence aside; None where it is
    anything else.
    """
    text = re.sub(r"^```[a-z]*\n|```$", "", completion.strip()).strip("`\n ")
    if not text:
        return None
    text = text if text.startswith("[") else f"[{text}"
    text = text if text.endswith("]") else f"{text}]"
    try:
        with warnings.catch_warnings():  # of escapes that Python does not know
            warnings.simplefilter("ignore")
            body = ast.parse(text, mode="eval").body
        if not isinstance(body, ast.List):
            return None
        return [_call(node) for node in body.elts]
    except (SyntaxError, ValueError, ArithmeticError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> Call:
    """ValueError: no call, or an argument without a name. Arguments by place count as none, as in
    BFCL.
    """
    if not isinstance(node, ast.Call):
        raise ValueError("no call")
    names, function = [], node.func
    while isinstance(function, ast.Attribute):
        names.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name):
        raise ValueError("the function has no name")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("** hides the names")
        arguments[keyword.arg] = _literal(keyword.value)
    return ".".join([function.id, *reversed(names)]), arguments


def _literal(node: ast.expr) -> Any:
    """A value; a variable is its name, a call or an index its text, as in BFCL."""
    if isinstance(node, ast.Constant):
        return "..." if node.value is ... else node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_literal(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        return _computed(node, _literal(node.left), _literal(node.right))
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_literal(item) for item in node.elts)
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_literal(key): _literal(value) for key, value in pairs if key is not None}
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Call) and node.keywords:
        name, arguments = _call(node)
        return {name: arguments}
    if isinstance(node, ast.Call | ast.Subscript):
        return ast.unparse(node)
    raise ValueError(f"{type(node).__name__} is no value")


def _computed(node: ast.BinOp, left: Any, right: Any) -> Any:
    """ValueError: other than numbers of a size that costs nothing."""
    numbers = [value for value in (left, right) if type(value) in (int, float)]
    if len(numbers) < 2 or max(map(abs, numbers)) > LARGEST_NUMBER:
        raise ValueError("no arithmetic of small numbers")
    if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_POWER:
        raise ValueError("too large a power")
    return ARITHMETIC[type(node.op)](left, right)


def calls_match(calls: Sequence[Call], expected: Expected) -> bool:
    """Whether there are as many calls as needed, and each needed one is the first that fits of
    those that no other took.
    """
    if len(calls) != len(expected.accepted):
        return False
    free = list(calls)
    for name, accepted in expected.accepted:
        schema = expected.functions[name]
        taken = next((call for call in free if _fits(call, name, schema, accepted)), None)
        if taken is None:
            return False
        free.remove(taken)
    return True


def _fits(
    call: Call, name: str, schema: Mapping[str, Any], accepted: Mapping[str, list[Any]]
) -> bool:
    given = call[1]
    stated = schema["properties"]
    if call[0] != name or any(key not in given for key in schema.get("required", ())):
        return False
    if any(key not in stated or key not in accepted for key in given):
        return False
    if any(key not in given and OPTIONAL not in accepted[key] for key in accepted):
        return False
    return all(_accepts(value, stated[key], accepted[key]) for key, value in given.items())


def _accepts(value: Any, stated: Mapping[str, Any], accepted: list[Any]) -> bool:
    """Whether a value has the stated type and is an accepted one.

    int counts as float, a tuple as a list where one is wanted. A text may stand for a variable:
    where the accepted values are of another type than stated, they decide, compared exactly.
    """
    kind = TYPES[stated["type"]]
    inner = TYPES[stated["items"]["type"]] if stated["type"] in ("array", "tuple") else None
    if stated["type"] == "tuple" and type(value) is tuple:
        value = list(value)
    if stated["type"] == "float" and type(value) is int:
        value = float(value)
    first = _first_type(accepted)
    variable = first is not None and first is not kind
    if type(value) is not kind:
        if type(value) is not first:
            return False
        variable = True
    elif inner is not None and not any(_inner_types(value, item, inner) for item in accepted):
        return False
    if variable:
        return value in accepted
    if kind is dict:
        return _dict_accepted(value, accepted)
    if inner is dict:
        return any(_dicts_accepted(value, item) for item in accepted)
    if kind is str:
        return _plain(value) in [_plain(item) for item in accepted if isinstance(item, str)]
    if kind is list:
        return [*map(_plain, value)] in [[*map(_plain, item)] for item in accepted]
    return value in accepted


def _first_type(accepted: Sequence[Any]) -> type | None:
    """Of the first accepted value that is not OPTIONAL."""
    return next((type(item) for item in accepted if item != OPTIONAL), None)


def _inner_types(value: list[Any], accepted: Any, inner: type) -> bool:
    """Whether all items are of the inner type, or of the accepted list's own."""
    if not isinstance(accepted, list):
        return True
    return all(type(item) in (inner, _first_type(accepted)) for item in value)


def _dict_accepted(value: Any, accepted: Sequence[Any]) -> bool:
    return any(_same_dict(value, item) for item in accepted if item != OPTIONAL)


def _dicts_accepted(value: list[Any], accepted: Any) -> bool:
    """A list of dicts, in order."""
    return len(value) == len(accepted) and all(
        _dict_accepted(one, [other]) for one, other in zip(value, accepted, strict=True)
    )


def _same_dict(value: Any, accepted: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(accepted, dict):
        return False
    if any(key not in accepted for key in value):
        return False
    if any(key not in value and OPTIONAL not in items for key, items in accepted.items()):
        return False
    return all(_plain(item) in [*map(_plain, accepted[key])] for key, item in value.items())


def _plain(value: Any) -> Any:
    """A text in small letters without what IGNORED says, with one kind of quotes; another value as
    it is.
    """
    if not isinstance(value, str):
        return value
    return IGNORED.sub("", value).lower().replace("'", '"')
