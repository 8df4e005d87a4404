"""A Jinja sandbox in which every template comes to an end.

Jinja's own sandbox keeps a template from what it must not reach, but bounds neither time nor
memory. Here a template pays for what it does (:mod:`~mlflow_phi3_onnx.prompt.template.metering`):

- Its syntax tree is changed before it is compiled: loops and macros count their turns, and what
  reads a value as a whole (output, ``~``, comparisons, slices) pays for its size.
- Operators, filters, tests, methods and functions pay when they are called, and those that can
  make a large value out of small ones pay before they make it
  (:mod:`~mlflow_phi3_onnx.prompt.template.pricing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

from mlflow_phi3_onnx.prompt.template import pricing
from mlflow_phi3_onnx.prompt.template.metering import (
    NODE,
    STEP,
    brace_format,
    compute,
    copy,
    read,
    spend,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Sandbox"]

# Filters that the changed syntax tree calls, by names that no template can write.
_STEP, _READ, _COPY, _SEARCH = "take a step", "read it", "copy it", "search it"


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An environment with Hugging Face's settings, whose templates run within a budget.

    Compile (:meth:`from_string`) and render inside
    :func:`~mlflow_phi3_onnx.prompt.template.metering.budget`.
    """

    intercepted_binops = frozenset(jinja2.sandbox.SandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_GenerationBlock, "jinja2.ext.loopcontrols"],
        )
        self.filters = {
            **pricing.filters(self.filters),
            _STEP: _take_step,
            _READ: _read,
            _COPY: _copy,
            _SEARCH: pricing.search,
        }
        self.tests = pricing.tests(self.tests)
        self.globals = pricing.functions(self.globals)

    def from_string(self, source: str | nodes.Template, *args: Any, **kwargs: Any) -> Any:
        """Compile a template that pays for what it does."""
        tree = self.parse(source) if isinstance(source, str) else source
        _meter(tree)
        return super().from_string(tree, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may take an attribute: of Python's own types, only some methods."""
        if type(obj) is pricing.Namespace:
            return not attr.startswith("_")
        methods = pricing.methods(type(obj))
        if methods is not None:
            return attr in methods
        return type(obj).__module__ != "builtins" and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left <operator> right``."""
        if operator == "+" and type(left) is str and type(right) is str:
            spend(STEP + len(left) + len(right))
            return left + right
        compute(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, a macro or a method."""
        spend(STEP)
        owner = getattr(obj, "__self__", None)
        if owner is not None:
            args = tuple(map(pricing.gathered, args))
            pricing.pay_method(owner, obj.__name__, args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Wrap ``str.format`` and ``str.format_map``, which Jinja hands out apart."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def paid(*args: Any, **kwargs: Any) -> str:
            spend(brace_format(value.__self__, args, kwargs))
            return wrapped(*args, **kwargs)

        return paid


class _GenerationBlock(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's part for training; here it is only a scope."""

    tags = {"generation"}  # noqa: RUF012 - Jinja reads this plain class attribute

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


_Body = nodes.For | nodes.Macro | nodes.CallBlock | nodes.Block


def _meter(tree: nodes.Template) -> None:
    """Change a syntax tree so that it pays for what it does."""
    for node in list(tree.find_all(nodes.Node)):
        if isinstance(node, nodes.Output | nodes.Concat):
            node.nodes = [_through(_READ, item) for item in node.nodes]
        elif isinstance(node, nodes.Compare):
            _meter_comparison(node)
        elif isinstance(node, nodes.Getitem):
            if isinstance(node.arg, nodes.Slice):
                node.node = _through(_COPY, node.node)
            else:
                node.arg = _through(_READ, node.arg)
        elif isinstance(node, nodes.Pair):
            node.key = _through(_READ, node.key)
        elif isinstance(node, nodes.Call | nodes.Filter | nodes.Test):
            if node.dyn_args:
                node.dyn_args = _through(_COPY, node.dyn_args)
            if node.dyn_kwargs:
                node.dyn_kwargs = _through(_COPY, node.dyn_kwargs)
        elif isinstance(node, _Body):
            node.body = [nodes.ExprStmt(_step(_price(node.body)), lineno=node.lineno), *node.body]
            if isinstance(node, nodes.For) and node.test is not None:
                node.test = nodes.And(_step(STEP), node.test, lineno=node.lineno)


def _meter_comparison(node: nodes.Compare) -> None:
    """Let a comparison pay, unless it is with a constant, whose size bounds it."""
    left: nodes.Expr = node.expr
    for operand in node.ops:
        right = operand.expr
        if operand.op in ("in", "notin"):
            operand.expr = _through(_SEARCH, right)
            if left is node.expr and not _constant(right):
                node.expr = _through(_READ, left)
        elif not _constant(left):
            operand.expr = _through(_READ, right)
        left = right


def _price(body: Iterable[nodes.Node]) -> int:
    """Sum up what is written in a body, but not in the bodies in it, which pay for themselves."""
    price, stack = STEP, list(body)
    while stack:
        node = stack.pop()
        price += len(node.data) if isinstance(node, nodes.TemplateData) else NODE
        stack += node.iter_child_nodes(exclude=("body",) if isinstance(node, _Body) else None)
    return price


def _constant(node: nodes.Expr) -> bool:
    return isinstance(node, nodes.Literal) and all(
        isinstance(part, nodes.Literal | nodes.Pair) for part in node.find_all(nodes.Node)
    )


def _through(name: str, node: nodes.Expr) -> nodes.Expr:
    """Pass an expression's value through a filter, unless it is a constant of the source."""
    return node if _constant(node) else _filter(name, node)


def _step(price: int) -> nodes.Expr:
    return _filter(_STEP, nodes.Const(price))


def _filter(name: str, node: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno or 1)


@jinja2.pass_context  # without its context, Jinja would compute it once, when it compiles
def _take_step(context: Any, price: int) -> bool:
    del context
    spend(price)
    return True


def _read(value: Any) -> Any:
    if type(value) is str:
        spend(len(value))
    else:
        read(value)
    return value


def _copy(value: Any) -> Any:
    copy(value)
    return value
