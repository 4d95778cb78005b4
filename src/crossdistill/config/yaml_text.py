"""Read YAML by the core schema of YAML 1.2: `on` and `no` are text, 1e-3 is a number, a key may occur only once."""

import re
from typing import Any

import yaml

_CORE = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}

_MOST_VALUES = 100_000
"""Values of all uses of anchors together: a short text can stand for billions."""


class _Loader(yaml.SafeLoader):
    """PyYAML's loader follows YAML 1.1, and lets a later key replace an earlier one."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012, PyYAML's name and type

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping. Raises ConstructorError for a key that is repeated."""
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _kind, (_pattern, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


def load_yaml(text: str) -> Any:
    """Read YAML text as plain data. Raises yaml.YAMLError, also for anchors that contain themselves."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"its anchors stand for more than {_MOST_VALUES:,} values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Count the values of a node as they are written out, every use of an anchor anew. Raises YAMLError for a cycle."""
    if id(node) in known:
        if known[id(node)] == 0:
            raise yaml.YAMLError("an anchor contains itself")
        return known[id(node)]
    known[id(node)] = 0
    inner = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    known[id(node)] = 1 if isinstance(node, yaml.ScalarNode) else 1 + sum(_count(part, known) for part in inner)
    return known[id(node)]
