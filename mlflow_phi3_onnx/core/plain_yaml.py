"""YAML of plain data, which every reader reads in the same way and in a short time."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import yaml

from mlflow_phi3_onnx.core.bounds import MAX_DEPTH, MAX_DIGITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["name_twice", "plain_yaml"]

_SHOWN = 80
_ALIASES = 1000


def plain_yaml(text: str) -> Any:
    """Return what a YAML document holds.

    Raises:
        yaml.YAMLError: If it is nested deeper than 64 levels, no YAML of plain data, has a key
            twice in one mapping, tells the type of a value, or refers to itself.
        ValueError: If a value is not what it looks like.
        TypeError: If a key can be none.
    """
    _check_events(yaml.parse(text, Loader=_Loader))
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a loader of plain data


def name_twice(keys: Iterable[str]) -> str:
    """Name a key that stands twice."""
    ((twice, _),) = Counter(keys).most_common(1)
    return repr(twice[:_SHOWN])


_SafeLoader: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """Loads plain data, and no mapping that has a key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        if "<<" in keys:
            raise _not_plain("it merges mappings with '<<'", node)
        if len({*keys}) != len(keys):
            raise _not_plain(f"it has the key {name_twice(keys)} twice in one mapping", node)
        return super().construct_mapping(node, deep=deep)


def _not_plain(problem: str, node_or_event: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node_or_event.start_mark)


def _number_or_text(construct: Callable[..., Any]) -> Callable[[_Loader, Any], Any]:
    """Leave a number to base 60, as ``1:30``, a text: YAML 1.2 has none, and they take long."""

    def make(loader: _Loader, node: Any) -> Any:
        if len(node.value) > MAX_DIGITS:  # the next reader, MLflow, might compute it
            raise _not_plain(f"a number has more than {MAX_DIGITS:,} digits", node)
        return node.value if ":" in node.value else construct(loader, node)

    return make


_constructor = yaml.constructor.SafeConstructor
_Loader.add_constructor("tag:yaml.org,2002:int", _number_or_text(_constructor.construct_yaml_int))
_Loader.add_constructor(
    "tag:yaml.org,2002:float", _number_or_text(_constructor.construct_yaml_float)
)


def _check_events(events: Iterable[Any]) -> None:
    """Refuse tags, and what takes more than its length: deep nesting, and aliases in aliases."""
    depth = aliases = 0
    anchored: list[int] = []  # the depths of the anchored collections that are open
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if event.anchor is not None:
                anchored.append(depth)
        elif isinstance(event, yaml.CollectionEndEvent):
            if anchored and anchored[-1] == depth:
                anchored.pop()
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
        if getattr(event, "tag", None):  # a scalar may not be what its tag says
            raise _not_plain("it says of what type a value is, with '!'", event)
        if depth > MAX_DEPTH or aliases > _ALIASES or (anchored and type(event) is yaml.AliasEvent):
            problem = f"it is nested deeper than {MAX_DEPTH} levels, or by aliases"
            raise _not_plain(problem, event)
