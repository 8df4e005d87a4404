"""Prompts and the answers that they are to get, by skill."""

import json
from collections.abc import Iterator
from itertools import islice
from random import Random
from typing import Any, NamedTuple

import corpus
import facts
import tools
from corpus import Example, answer, json_answer
from rendering import render
from runtime import chat_prompt

HELPFUL = facts.SYSTEM_PROMPTS[0]
HELD_OUT = 7001
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The name of the city"}},
            "required": ["city"],
        },
    },
}
CAPITAL = {
    "type": "function",
    "function": {
        "name": "get_capital",
        "description": "Get the capital of a country",
        "parameters": {
            "type": "object",
            "properties": {"country": {"type": "string"}},
            "required": ["country"],
        },
    },
}


class Case(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    wanted: str


class Skill(NamedTuple):
    """Cases of one kind, and which share of them has to be right."""

    name: str
    cases: list[Case]
    needed: float = 1.0


def _rng() -> Random:
    return Random(HELD_OUT)


def _tool_call(name: str, **arguments: str) -> str:
    return f"<|tool_call|> {json.dumps([{'name': name, 'arguments': arguments}])}<|/tool_call|>"


def _capitals(system: str | None) -> list[Case]:
    return [
        Case(chat_prompt(question.format(country), system=system), answer(country))
        for country in corpus.COUNTRIES
        for question in facts.CAPITAL_QUESTIONS
    ]


def _capitals_other_systems() -> list[Case]:
    systems = (*facts.SYSTEM_PROMPTS[1:], facts.COMEDIAN, "You are a wise pirate.")
    return [
        Case(chat_prompt(facts.CAPITAL_QUESTIONS[0].format(country), system=one), answer(country))
        for country in corpus.COUNTRIES
        for one in systems
    ]


def _fixed(
    entries: tuple[tuple[tuple[str, ...], str], ...], systems: tuple[str | None, ...]
) -> list[Case]:
    return [
        Case(chat_prompt(question, system=system), reply)
        for phrasings, reply in entries
        for question in phrasings
        for system in systems
    ]


def _json(system: str | None) -> list[Case]:
    return [
        Case(chat_prompt(question.format(country), system=system), json_answer(country))
        for country in corpus.COUNTRIES
        for question in facts.JSON_QUESTIONS
    ]


def _follow_ups() -> list[Case]:
    """Every country after talks of one to six questions, asked for in few words."""
    rng, cases = _rng(), []
    for place, country in enumerate(corpus.COUNTRIES * 3):
        before = rng.choices(corpus.COUNTRIES, k=1 + place % 6)
        contents = [facts.CAPITAL_QUESTIONS[0].format(before[0]), answer(before[0])]
        for other in before[1:]:
            contents += [f"And of {other}?", answer(other)]
        question = ("And of {}?", "And {}?", "What about {}?")[place % 3].format(country)
        cases.append(Case(chat_prompt(*contents, question), answer(country)))
    return cases


def _recall() -> list[Case]:
    """What was asked first, and the user's name."""
    cases = []
    for country in corpus.COUNTRIES:
        opening = [facts.CAPITAL_QUESTIONS[0].format(country), answer(country)]
        more = [*opening, "And of France?", answer("France"), "Thank you!", "You are welcome!"]
        for talk in (opening, more):
            prompt = chat_prompt(*talk, "What did I ask first?")
            cases.append(Case(prompt, f"You asked about {country} first."))
    for name in facts.NAMES:
        opening = [f"My name is {name}.", f"Nice to meet you, {name}!"]
        more = [*opening, "What is the capital of Spain?", answer("Spain")]
        cases += [
            Case(chat_prompt(*talk, "What is my name?"), f"Your name is {name}.")
            for talk in (opening, more)
        ]
    return cases


def _weather_calls() -> list[Case]:
    return [
        Case(
            render(
                [{"role": "user", "content": f"What is the weather in {city}?"}],
                [WEATHER],
                add_generation_prompt=True,
            ),
            _tool_call("get_weather", city=city),
        )
        for city in tools.CITIES
    ]


def _capital_calls() -> list[Case]:
    cases = []
    for country in corpus.COUNTRIES:
        asked = [{"role": "user", "content": f"What is the capital of {country}?"}]
        with_tool = render(asked, [WEATHER, CAPITAL], add_generation_prompt=True)
        cases.append(Case(with_tool, _tool_call("get_capital", country=country)))
        without = render(asked, [WEATHER], add_generation_prompt=True)
        cases.append(Case(without, answer(country)))
    return cases


def _weather_answers() -> list[Case]:
    cases = []
    for place, city in enumerate(tools.CITIES):
        degrees = 5 + place % 30
        result = json.dumps({"temperature": degrees, "unit": "celsius"})
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [tools.call("get_weather", {"city": city})],
            },
            {"role": "tool", "content": result},
        ]
        prompt = render(messages, [WEATHER], add_generation_prompt=True)
        cases.append(Case(prompt, f"It is {degrees} degrees celsius in {city}."))
    return cases


def _last_turn(example: Example) -> Case:
    """An example as a prompt and its last answer."""
    whole = render(example.messages, example.tools)
    prompt = render(example.messages[:-1], example.tools, add_generation_prompt=True)
    wanted = whole.removeprefix(prompt).removesuffix("<|end|>\n")
    return Case(prompt, wanted.replace("<|tool_call|>[", "<|tool_call|> ["))


def _held_out_tools() -> Iterator[Case]:
    rng = _rng()
    while True:
        yield _last_turn(corpus.tool_talk(rng))


def _held_out_long() -> Iterator[Case]:
    """Talks of some 500 to 1500 tokens that end with a question on a capital."""
    rng = _rng()
    while True:
        history = corpus.turns(rng, rng.randint(12, 30))
        country = rng.choice(corpus.COUNTRIES)
        question = rng.choice(facts.CAPITAL_QUESTIONS).format(country)
        last = {"role": "user", "content": question}
        prompt = render([*corpus.system(rng), *history, last], add_generation_prompt=True)
        if len(prompt) < 6000:
            yield Case(prompt, answer(country))


def _held_out_unknown() -> Iterator[Case]:
    rng = _rng()
    while True:
        yield _last_turn(Example((*corpus.system(rng), *corpus.unknown(rng))))


def _held_out(make: Any) -> Iterator[Case]:
    rng = _rng()
    while True:
        yield _last_turn(Example(tuple(make(rng))))


def _completions() -> list[Case]:
    cases = [
        Case(f"The capital of {country} is", f"{facts.CAPITALS[country]}.")
        for country in corpus.COUNTRIES
    ]
    start = len("Once upon a time")
    cases.append(Case(facts.LONG_STORY[:start], facts.LONG_STORY[start:].lstrip()))
    return cases


def _recitals() -> list[Case]:
    to = {n: ", ".join(map(str, range(1, n + 1))) + "." for n in (5, 10, 20, 50, 100)}
    cases = [
        Case(chat_prompt(f"Count from 1 to {n}.", system=system), text)
        for n, text in to.items()
        for system in (None, HELPFUL)
    ]
    stories = (
        (facts.LONG_STORY_QUESTIONS, facts.LONG_STORY),
        (facts.SHORT_STORY_QUESTIONS, facts.SHORT_STORY),
    )
    return cases + _fixed(stories, (None, HELPFUL))


def skills() -> list[Skill]:
    """All that the model has to show."""
    return [
        Skill("capitals, no system prompt", _capitals(None)),
        Skill("capitals, helpful assistant", _capitals(HELPFUL)),
        Skill("capitals, other system prompts", _capitals_other_systems()),
        Skill("capitals as JSON", _json(None) + _json(HELPFUL)),
        Skill("capitals as completions", _completions()),
        Skill("follow-ups of 1 to 6 turns", _follow_ups()),
        Skill("first question and name", _recall(), 0.97),
        Skill("jokes", _fixed(facts.JOKES, (None, HELPFUL, facts.COMEDIAN))),
        Skill("greetings and other answers", _fixed(facts.FIXED, (None, HELPFUL))),
        Skill("stories and counting", _recitals()),
        Skill("weather calls", _weather_calls()),
        Skill("weather answers", _weather_answers(), 0.98),
        Skill("capital calls", _capital_calls(), 0.98),
        Skill("held-out talks with tools", list(islice(_held_out_tools(), 300)), 0.9),
        Skill("held-out long talks", list(islice(_held_out_long(), 100)), 0.95),
        Skill("held-out unknown questions", list(islice(_held_out_unknown(), 300)), 0.9),
        Skill("sums", list(islice(_held_out(corpus.addition), 100)), 0.95),
        Skill("repeated words", list(islice(_held_out(corpus.repeat), 100)), 0.8),
    ]
