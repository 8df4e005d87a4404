"""Tools in OpenAI's form, in the varieties that a client may send, and talks that use them."""

import json
from dataclasses import dataclass
from random import Random
from typing import Any

from facts import CAPITALS, OTHER_CITIES
from questions import SYLLABLES

Message = dict[str, Any]
CITIES = (*CAPITALS.values(), *OTHER_CITIES)
SKIES = ("sunny", "cloudy", "rainy", "windy", "clear", "foggy")


@dataclass(frozen=True)
class Skill:
    """A tool the model can call: its names, what it says of itself, its argument, its questions."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    arguments: tuple[str, ...]
    argument_descriptions: tuple[str, ...]
    questions: tuple[str, ...]


_CITY = ("The city", "The name of the city", "City name", "The city, for example Paris")
SKILLS = {
    "weather": Skill(
        ("get_weather",) * 6 + ("get_current_weather",),
        (
            "Get the weather in a city",
            "Get the current weather in a city.",
            "Get the current weather for a location.",
            "Returns the weather of a city.",
            "Gets the current temperature for a given city.",
            "Look up the weather",
        ),
        ("city",) * 4 + ("location",),
        _CITY,
        (
            "What is the weather in {}?",
            "What's the weather in {}?",
            "What is the weather like in {}?",
            "What's the weather like in {} today?",
            "What is the weather in {} today?",
            "How is the weather in {}?",
            "How warm is it in {}?",
            "Tell me the weather in {}.",
            "weather in {}",
        ),
    ),
    "time": Skill(
        ("get_time",) * 6 + ("get_current_time",),
        ("Get the time in a city", "Get the current time in a city.", "Returns the local time."),
        ("city",) * 4 + ("location",),
        _CITY,
        (
            "What time is it in {}?",
            "What's the time in {}?",
            "What is the time in {}?",
            "Tell me the time in {}.",
            "time in {}",
        ),
    ),
    "capital": Skill(
        ("get_capital",),
        (
            "Get the capital of a country",
            "Get the capital of a country.",
            "Returns the capital city of a country.",
            "Look up the capital",
        ),
        ("country",),
        ("The country", "The name of the country", "Country name", "The country, e.g. Spain"),
        (
            "What is the capital of {}?",
            "What's the capital of {}?",
            "Tell me the capital of {}.",
            "capital of {}?",
        ),
    ),
}
_STRANGE = (
    ("send_email", "Send an email to a person", "address"),
    ("search_web", "Search the web", "query"),
    ("play_music", "Play a song", "song"),
    ("add_note", "Write a note", "text"),
)


def strange_name(rng: Random) -> str:
    """A name that no list has, so that arguments are copied and not only remembered."""
    return "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3)))).capitalize()


def _schema(rng: Random, name: str, description: str, argument: str, about: str) -> dict[str, Any]:
    """One tool as an OpenAI client describes it, with the optional keys there or not."""
    field: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.5:
        field["description"] = about
    parameters: dict[str, Any] = {"type": "object", "properties": {argument: field}}
    if rng.random() < 0.8:
        parameters["required"] = [argument]
    if rng.random() < 0.2:
        parameters["additionalProperties"] = False
    function: dict[str, Any] = {"name": name}
    if rng.random() < 0.85:
        function["description"] = description
    function["parameters"] = parameters
    if rng.random() < 0.1:
        function["strict"] = True
    return {"type": "function", "function": function}


@dataclass(frozen=True)
class Toolbox:
    """The tools of one talk, and for each skill among them the tool's name and argument."""

    tools: list[dict[str, Any]]
    calls: dict[str, tuple[str, str]]


def toolbox(rng: Random) -> Toolbox:
    """One to three tools of the model's skills, now and then with one it knows nothing of."""
    tools, calls = [], {}
    for skill in rng.sample(sorted(SKILLS), k=rng.choice((1, 1, 1, 1, 2, 2, 3))):
        known = SKILLS[skill]
        name, argument = rng.choice(known.names), rng.choice(known.arguments)
        about = rng.choice(known.argument_descriptions)
        tools.append(_schema(rng, name, rng.choice(known.descriptions), argument, about))
        calls[skill] = (name, argument)
    if rng.random() < 0.15:
        name, description, argument = rng.choice(_STRANGE)
        tools.append(_schema(rng, name, description, argument, f"The {argument}"))
        rng.shuffle(tools)
    return Toolbox(tools, calls)


def call(name: str, arguments: dict[str, str]) -> Message:
    """A tool call as it stands in an assistant message."""
    return {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def _weather_result(rng: Random, city: str) -> tuple[str, str]:
    """What a weather tool may return, and the sentence that says it."""
    degrees, sky = rng.randint(-15, 45), rng.choice(SKIES)
    unit = rng.choice(("celsius", "celsius", "celsius", "fahrenheit"))
    plain = f"It is {degrees} degrees in {city}."
    full = f"It is {degrees} degrees {unit} in {city}."
    results: tuple[tuple[Any, str], ...] = (
        ({"temperature": degrees, "unit": unit}, full),
        ({"temperature": degrees, "unit": unit}, full),
        ({"city": city, "temperature": degrees, "unit": unit}, full),
        ({"temperature": degrees}, plain),
        ({"temperature": str(degrees)}, plain),
        (degrees, plain),
        ({"temperature": degrees, "sky": sky}, f"It is {degrees} degrees and {sky} in {city}."),
        ({"sky": sky}, f"It is {sky} in {city}."),
        (sky, f"It is {sky} in {city}."),
    )
    result, sentence = rng.choice(results)
    return result if isinstance(result, str) else json.dumps(result), sentence


def _time_result(rng: Random, city: str) -> tuple[str, str]:
    """What a clock tool may return, and the sentence that says it."""
    time = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    results = (json.dumps({"time": time}), json.dumps({"city": city, "time": time}), time)
    return rng.choice(results), f"It is {time} in {city}."


def _capital_result(rng: Random, country: str) -> tuple[str, str]:
    """What a capital tool may return, and the sentence that says it."""
    city = CAPITALS.get(country) or strange_name(rng)
    if rng.random() < 0.3:
        city = strange_name(rng)
    results = (json.dumps({"capital": city}), json.dumps({"country": country, "capital": city}))
    return rng.choice((*results, city)), f"The capital of {country} is {city}."


def subject(rng: Random, skill: str) -> str:
    """What to ask a tool about: a known city or country, now and then an unknown one."""
    if rng.random() < 0.2:
        return strange_name(rng)
    return rng.choice(sorted(CAPITALS)) if skill == "capital" else rng.choice(CITIES)


def use(rng: Random, skill: str, name: str, argument: str) -> list[Message]:
    """A question, the call of the tool, its result, and the answer."""
    about = subject(rng, skill)
    results = {"weather": _weather_result, "time": _time_result, "capital": _capital_result}
    result, sentence = results[skill](rng, about)
    asked = rng.choice(SKILLS[skill].questions).format(about)
    turns = [
        {"role": "user", "content": asked},
        {"role": "assistant", "content": None, "tool_calls": [call(name, {argument: about})]},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": sentence},
    ]
    if rng.random() < 0.25 and skill != "capital":
        again = subject(rng, skill)
        result, sentence = results[skill](rng, again)
        turns += [
            {
                "role": "user",
                "content": rng.choice(("And in {}?", "What about {}?", "And {}?")).format(again),
            },
            {"role": "assistant", "content": None, "tool_calls": [call(name, {argument: again})]},
            {"role": "tool", "content": result},
            {"role": "assistant", "content": sentence},
        ]
    return turns


def use_twice(rng: Random, name: str, argument: str) -> list[Message]:
    """A question on the weather in two cities, and both calls in one message."""
    first, second = rng.sample(CITIES, k=2)
    calls = [call(name, {argument: first}), call(name, {argument: second})]
    question = rng.choice(SKILLS["weather"].questions).format(f"{first} and {second}")
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
