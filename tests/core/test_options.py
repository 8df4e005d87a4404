"""Declaring an option: how it is read, refused and documented."""

from __future__ import annotations

from collections import OrderedDict

import pytest

from mlflow_phi3_onnx.core.checks import describe_kind, integer, one_of, show
from mlflow_phi3_onnx.core.options import Option, help_text, markdown, read, table
from mlflow_phi3_onnx.errors import InvalidRequestError, UnsupportedParameterError

OPTIONS = table(
    Option("size", "How big.", integer(1, 9), 3, from_text=True),
    Option("kind", "Which.", one_of("a", "b"), otherwise="the model's"),
    Option("old", "Use size.", status="refused", default=False),
)


def test_values_are_read_and_null_is_not_given() -> None:
    values = {"size": "4", "kind": None, "old": False}
    assert read(OPTIONS, values, "an option") == {"size": 4}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("x" * 78, f"'{'x' * 78}'"),
        (None, "null"),
        (True, "True"),
        ({"a": 1}, "{'a': 1}"),
        (["a"], "['a']"),
        (b"a", "bytes"),
        (3, "3"),
    ],
)
def test_settings_are_shown(value: object, shown: str) -> None:
    assert show(value) == shown


def test_long_settings_are_cut() -> None:
    for characters in (79, 1000):
        assert len(show("x" * characters)) == 80
        assert "..." in show("x" * characters)


def test_settings_are_shown_and_the_nearest_choice_is_named() -> None:
    for value, end in (("ab", "got 'ab'."), ("three", "got 'three'. Did you mean tree?")):
        with pytest.raises(InvalidRequestError) as caught:
            Option("kind", "Which.", one_of("tree", "bush")).read(value, shown=True)
        assert caught.value.message == f"kind must be one of tree, bush; {end}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 10}, "here: size must be an integer from 1 to 9; got 10."),
        ({"size": "secret"}, "here: size must be an integer from 1 to 9; got a string."),
        ({"kind": ["secret"]}, "here: kind must be one of a, b; got a list."),
        ({"old": True}, "here: old is not supported. Use size."),
        ({"sizes": 1}, "here: sizes is not an option. Did you mean size? There are size, kind."),
        ([], "here must be a mapping; got a list."),
    ],
)
def test_there_is_one_form_of_refusal(values: dict[str, object], message: str) -> None:
    with pytest.raises((InvalidRequestError, UnsupportedParameterError)) as caught:
        read(OPTIONS, values, "an option", "here")
    assert caught.value.message == message


def test_the_tables_show_what_is_allowed_and_the_default() -> None:
    assert "| `size` | an integer from 1 to 9 | 3 | How big. |" in markdown(OPTIONS.values())
    assert "Which. May be one of a, b; by default the model's." in help_text(OPTIONS)


def test_kinds_have_their_article() -> None:
    assert describe_kind(set[int]()) == "a set"
    assert describe_kind(OrderedDict[str, int]()) == "an OrderedDict"
