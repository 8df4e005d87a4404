"""Seeded mutations of the documents that a model folder brings."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 10**30, 0.5, -1e308),
    *("", "x", "../x", "/etc/hosts", "a\\b", "a:b", ".", "%s", "%d%d", "\x00", "\n", "é" * 300),
    *([], {}, [[]], [None], ["x"], {"": None}, {"x": {"x": {"x": 1}}}, [0] * 3000, "y" * 9000),
)
"""What is put in the place of something else."""

TEMPLATE_PARTS = (
    *("{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}", "{{ messages }}"),
    *("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ ''.__class__.__mro__ }}", "{{ x"),
    *("{% if %}", "{{ messages[99] }}", "{{ raise_exception('no') }}", "{% include 'x' %}"),
    *("{% set ns = namespace(a=[]) %}{% set ns.a = [ns.a] * 9 %}", "{{ 9 ** 9 ** 9 }}", "\x00"),
)


def mutate_json(text: str, rng: random.Random) -> bytes:
    """Change one or more values of a JSON document, or its text."""
    return _mutate(text, rng, json.loads, json.dumps)


def mutate_yaml(text: str, rng: random.Random) -> bytes:
    """Change one or more values of a YAML document, or its text."""
    return _mutate(text, rng, yaml.safe_load, yaml.safe_dump)


def mutate_template(text: str, rng: random.Random) -> bytes:
    """Put something into a chat template, or change its text."""
    if rng.random() < 0.5:
        return mutate_bytes(text.encode(), rng)
    place = rng.randrange(len(text) + 1)
    return (text[:place] + rng.choice(TEMPLATE_PARTS) + text[place:]).encode()


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut, repeat or insert bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 1, 2, 16, 300)))
        match rng.randrange(5):
            case 0:
                changed[start:end] = bytes(rng.randrange(256) for _ in range(end - start))
            case 1:
                del changed[start:end]
            case 2:
                changed[start:start] = changed[start:end] * rng.choice((1, 2, 9))
            case 3:
                changed[start:start] = rng.choice((b"\xff", b"\x80" * 11, b'"', b"{", b"\x00"))
            case _:
                if rng.random() < 0.2:
                    del changed[start:]
                changed[start : start + 1] = (
                    b ^ 1 << rng.randrange(8) for b in changed[start : start + 1]
                )
    return bytes(changed)


def _mutate(
    text: str, rng: random.Random, load: Callable[[str], Any], dump: Callable[[Any], str]
) -> bytes:
    if rng.random() < 0.15:
        return mutate_bytes(text.encode(), rng)
    document = load(text)
    if "flavors" in document:  # of all that is in an MLmodel file, this is what is read
        document = document["flavors"]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(document, rng)
    changed = dump(document)
    if rng.random() < 0.05:  # a key twice
        key = next(iter(document), "x") if isinstance(document, dict) else "x"
        changed = changed.replace("{", f'{{"{key}": {{}}, ', 1)
    return changed.encode("utf-8", "surrogatepass")


def _change(document: Any, rng: random.Random) -> None:
    """Change one place: at each level, go deeper or stay."""
    here = document
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = rng.choice(keys)
        deeper = isinstance(here[key], dict | list) and len(here[key]) > 0
        if deeper and rng.random() < 0.8:
            here = here[key]
            continue
        match rng.randrange(6):
            case 0:
                del here[key]
            case 1 if isinstance(here, dict):
                here[f"{key}x"] = here.pop(key)
            case 2 if isinstance(here, dict):
                here[rng.choice(("x", "custom_ops_library", "type", "%s"))] = rng.choice(VALUES)
            case 3 if isinstance(here[key], int | float) and not isinstance(here[key], bool):
                here[key] = rng.choice(
                    (-here[key], here[key] + 1, here[key] * 10**6, f"{here[key]}")
                )
            case 4:
                here[key] = copy.deepcopy(here[rng.choice(keys)])
            case _:
                here[key] = copy.deepcopy(rng.choice(VALUES))
        return
