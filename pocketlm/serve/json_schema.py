"""Which JSON schemas an answer can be held to.

llama.cpp's grammar engine ignores one it cannot read, and the answer is then held to nothing, so
what it does not read is refused here by name.
"""

from collections.abc import Iterator
from typing import Any

from pocketlm.serve.refusal import Refusal

TYPES = {"object", "array", "string", "number", "integer", "boolean", "null"}
# keywords whose value is a schema, a list of schemas, or schemas by name
ONE = ("items", "additionalProperties", "additionalItems")
MANY = ("anyOf", "allOf", "oneOf", "prefixItems")
NAMED = ("properties", "$defs", "definitions")
PLAIN = {
    *("type", "const", "enum", "required", "$ref", "$schema", "$id", "title", "description"),
    *("default", "examples", "minLength", "maxLength", "pattern", "format", "minimum", "maximum"),
    *("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems", "nullable"),
    *("minProperties", "maxProperties", "readOnly", "writeOnly", "deprecated", "$comment"),
}
KNOWN = {*PLAIN, *ONE, *MANY, *NAMED}
MOST_SCHEMAS = 2000  # of one request, the inner ones counted


def check_schema(schema: Any, param: str) -> None:
    """Nothing, or a Refusal that names what of the schema cannot be honoured."""
    for count, (place, inner) in enumerate(schemas(schema, "#")):
        if count >= MOST_SCHEMAS:
            raise _wrong(param, "#", f"more than {MOST_SCHEMAS} schemas stand inside")
        if isinstance(inner, bool):
            continue
        if not isinstance(inner, dict):
            raise _wrong(param, place, "a schema is an object")
        if unknown := sorted(inner.keys() - KNOWN):
            raise _wrong(param, place, f"{unknown[0]} is not read here")
        types = inner.get("type", [])
        types = types if isinstance(types, list) else [types]
        if bad := [t for t in types if not isinstance(t, str) or t not in TYPES]:
            raise _wrong(param, place, f"no type {bad[0]!r}")
        reference = inner.get("$ref", "#")
        if not isinstance(reference, str) or not refers(schema, reference):
            raise _wrong(param, place, f"$ref {reference!r} leads to no schema of this one")
        for name, kind in (("required", list), ("enum", list)):
            if name in inner and not isinstance(inner[name], kind):
                raise _wrong(param, place, f"{name} must be a list")


def schemas(schema: Any, place: str) -> Iterator[tuple[str, Any]]:
    """(where, schema) of a schema and of all inside it, those of a wrong kind too."""
    waiting = [(place, schema)]
    while waiting:
        place, inner = waiting.pop()
        yield place, inner
        if not isinstance(inner, dict):
            continue
        waiting += [(f"{place}/{name}", inner[name]) for name in ONE if name in inner]
        for name in MANY:
            values = inner.get(name, [])
            values = values if isinstance(values, list) else [values]
            waiting += [(f"{place}/{name}/{i}", value) for i, value in enumerate(values)]
        for name in NAMED:
            values = inner.get(name, {})
            pairs = values.items() if isinstance(values, dict) else [("", values)]
            waiting += [(f"{place}/{name}/{key}", value) for key, value in pairs]


def refers(schema: Any, reference: str) -> bool:
    """Whether a reference leads to a place of this schema."""
    if not reference.startswith("#"):
        return False
    at = schema
    for part in filter(None, reference[1:].split("/")):
        if not isinstance(at, dict) or part not in at:
            return False
        at = at[part]
    return isinstance(at, dict)


def _wrong(param: str, place: str, what: str) -> Refusal:
    return Refusal(400, f"{param}: the JSON schema at {place}: {what}", param=param)
