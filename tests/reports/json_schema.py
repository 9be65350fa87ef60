"""As much of JSON Schema as the published one uses; anything else in it is an error."""

from collections.abc import Iterator
from typing import Any

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "null": type(None),
}
KNOWN = {"$schema", "$defs", "$ref", "title", "description", "type", "required", "properties"}
KNOWN |= {"additionalProperties", "items", "enum", "const", "anyOf"}


def problems(
    value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = ""
) -> Iterator[str]:
    assert schema.keys() <= KNOWN, schema.keys() - KNOWN
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in schema:
        tried = [list(problems(value, one, root, at)) for one in schema["anyOf"]]
        if all(tried):
            yield from min(tried, key=len)
    if "const" in schema and value != schema["const"]:
        yield f"{at} is {value!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at} is {value!r}"
    names = schema.get("type", [])
    kinds = [names] if isinstance(names, str) else names
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{at} is {value!r}, not {names}"
    if isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (f"{at}.{n} is missing" for n in schema.get("required", ()) if n not in value)
        for name, each in value.items():
            if name in known:
                yield from problems(each, known[name], root, f"{at}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{at}.{name} is not in the schema"
    if isinstance(value, list) and "items" in schema:
        for index, each in enumerate(value):
            yield from problems(each, schema["items"], root, f"{at}.{index}")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind])
