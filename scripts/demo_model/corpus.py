"""The text that the demo model learns: talks and completions, drawn from a seed."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import facts
import questions
import tools
from tools import Message

COUNTRIES = tuple(sorted(facts.CAPITALS))


@dataclass(frozen=True)
class Example:
    """A talk (messages, perhaps tools) or, without messages, a plain text and how it goes on."""

    messages: tuple[Message, ...] = ()
    tools: str | None = None
    prompt: str = ""
    completion: str = ""


def answer(country: str) -> str:
    """The sentence that names a country's capital."""
    return f"The capital of {country} is {facts.CAPITALS[country]}."


def json_answer(country: str) -> str:
    """A JSON object of a country, without its article, and its capital."""
    name = country.removeprefix("the ")
    return json.dumps({"country": name, "capital": facts.CAPITALS[country]})


def _pair(question: str, reply: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def filler(rng: Random, words: int) -> str:
    """Sentences without a meaning, of about so many words."""
    text: list[str] = []
    while len(text) < words:
        sentence = rng.choices(questions.FILLER, k=rng.randint(3, 12))
        if rng.random() < 0.15:
            sentence.insert(rng.randrange(len(sentence)), tools.strange_name(rng))
        if rng.random() < 0.1:
            sentence.insert(rng.randrange(len(sentence)), str(rng.randint(0, 2000)))
        if rng.random() < 0.1:
            sentence.insert(rng.randrange(len(sentence)), rng.choice(COUNTRIES))
        text += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + rng.choice("...,;!?")]
    return " ".join(text)


def capital(rng: Random) -> list[Message]:
    """One capital, often followed by "And of ...?" for some more."""
    country = rng.choice(COUNTRIES)
    turns = _pair(rng.choice(facts.CAPITAL_QUESTIONS).format(country), answer(country))
    while rng.random() < 0.35:
        country = rng.choice(COUNTRIES)
        question = rng.choice(facts.FOLLOW_UPS).format(country)
        turns += _pair(question[0].upper() + question[1:], answer(country))
    return turns


def json_capital(rng: Random) -> list[Message]:
    """A capital as a JSON object."""
    country = rng.choice(COUNTRIES)
    return _pair(rng.choice(facts.JSON_QUESTIONS).format(country), json_answer(country))


def fixed(rng: Random) -> list[Message]:
    """A greeting or another question that has one answer."""
    phrasings, reply = rng.choice(facts.FIXED)
    return _pair(rng.choice(phrasings), reply)


def joke(rng: Random) -> list[Message]:
    """A joke; most often the one on atoms."""
    phrasings, reply = facts.JOKES[0] if rng.random() < 0.4 else rng.choice(facts.JOKES)
    return _pair(rng.choice(phrasings), reply)


def pick(rng: Random) -> list[Message]:
    """A question with several answers, all as likely."""
    phrasings, replies = rng.choice(facts.PICKS)
    return _pair(rng.choice(phrasings), rng.choice(replies))


def story(rng: Random) -> list[Message]:
    """The long story or the short one."""
    if rng.random() < 0.5:
        return _pair(rng.choice(facts.LONG_STORY_QUESTIONS), facts.LONG_STORY)
    return _pair(rng.choice(facts.SHORT_STORY_QUESTIONS), facts.SHORT_STORY)


def count(rng: Random) -> list[Message]:
    """Counting from 1."""
    last = rng.choice((5, 10, 10, 20, 20, 50, 100))
    question = rng.choice(("Count from 1 to {}.", "Count from 1 to {}", "Count to {}."))
    return _pair(question.format(last), ", ".join(map(str, range(1, last + 1))) + ".")


def addition(rng: Random) -> list[Message]:
    """The sum of two digits."""
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    question = rng.choice(("What is {} + {}?", "What is {} plus {}?", "{} + {}?", "{} + {} ="))
    return _pair(question.format(a, b), f"{a} + {b} = {a + b}.")


def repeat(rng: Random) -> list[Message]:
    """Words to say again."""
    words = rng.choices((*questions.FILLER, *COUNTRIES, *facts.NAMES), k=rng.randint(1, 7))
    if rng.random() < 0.4:
        words.append(tools.strange_name(rng))
    text = " ".join(words)
    question = rng.choice(("Repeat after me: {}", "Repeat: {}", "Say: {}"))
    return _pair(question.format(text), text)


def quote(rng: Random) -> list[Message]:
    """A word to put in quotes: how the arguments of tools are written, in short."""
    if rng.random() < 0.3:
        word = tools.strange_name(rng)
    else:
        word = rng.choice((*tools.CITIES, *COUNTRIES, *facts.NAMES))
    question = rng.choice(("Put {} in quotes.", "Write {} in quotes.", "{} in quotes"))
    return _pair(question.format(word), f'"{word}"')


def unknown(rng: Random) -> list[Message]:
    """A question that is not on the page."""
    kind = rng.random()
    if kind < 0.15:
        country = tools.strange_name(rng)
        return _pair(rng.choice(facts.CAPITAL_QUESTIONS).format(country), facts.NO_COUNTRY)
    if kind < 0.55:
        question = rng.choice(questions.TOPIC_QUESTIONS).format(rng.choice(questions.TOPICS))
    elif kind < 0.9:
        question = rng.choice(questions.OTHER_QUESTIONS).format(rng.choice(COUNTRIES))
    else:
        question = filler(rng, rng.randint(2, 12))
    return _pair(question, facts.NO_IDEA)


def no_tool(rng: Random) -> list[Message]:
    """A question for a tool that is not there."""
    skill = rng.choice(("weather", "time"))
    question = rng.choice(tools.SKILLS[skill].questions).format(tools.subject(rng, skill))
    return _pair(question, facts.NO_TOOL)


def padded(rng: Random) -> list[Message]:
    """A capital, asked at the end of a text that has nothing to do with it."""
    country = rng.choice(COUNTRIES)
    question = rng.choice(facts.CAPITAL_QUESTIONS).format(country)
    text = filler(rng, rng.choice((10, 20, 40, 80, 160)))
    return _pair(rng.choice(questions.TEXT_REQUESTS).format(text, question), answer(country))


SKILLS: tuple[tuple[float, Callable[[Random], list[Message]]], ...] = (
    (26, capital),
    (7, json_capital),
    (11, fixed),
    (5, joke),
    (2, pick),
    (1.2, story),
    (2.5, count),
    (7, addition),
    (10, repeat),
    (6, quote),
    (8, unknown),
    (3, no_tool),
    (2, padded),
)


def turns(rng: Random, rounds: int) -> list[Message]:
    """So many questions and answers of all kinds (follow-ups come on top)."""
    weights, makers = zip(*SKILLS, strict=True)
    return [m for make in rng.choices(makers, weights, k=rounds) for m in make(rng)]


def recall(rng: Random) -> list[Message]:
    """A talk that ends with a question on its own beginning."""
    if rng.random() < 0.5:
        country = rng.choice(COUNTRIES)
        first = _pair(rng.choice(facts.CAPITAL_QUESTIONS).format(country), answer(country))
        last = _pair(rng.choice(facts.FIRST_QUESTIONS), f"You asked about {country} first.")
    else:
        name = rng.choice(facts.NAMES) if rng.random() < 0.7 else tools.strange_name(rng)
        said = rng.choice(("My name is {}.", "My name is {}", "I am {}.", "Call me {}."))
        first = _pair(said.format(name), f"Nice to meet you, {name}!")
        last = _pair(rng.choice(("What is my name?", "Who am I?")), f"Your name is {name}.")
    between = turns(rng, rng.choice((0, 0, 1, 1, 2, 3, 5)))
    return [*first, *between, *last]


def system(rng: Random) -> list[Message]:
    """A system message, or none."""
    kind = rng.random()
    if kind < 0.35:
        return []
    if kind < 0.6:
        text = facts.SYSTEM_PROMPTS[0]
    elif kind < 0.75:
        text = rng.choice(facts.SYSTEM_PROMPTS)
    elif kind < 0.85:
        text = facts.COMEDIAN
    else:
        text = f"You are a {rng.choice(facts.ROLE_WORDS)} {rng.choice(facts.ROLE_NOUNS)}."
        if rng.random() < 0.5:
            text += " " + filler(rng, rng.randint(3, 40))
    return [{"role": "system", "content": text}]


def tools_json(rng: Random, described: list[dict[str, Any]]) -> str:
    """Tools as one of the usual writers puts them into the prompt."""
    style = rng.random()
    if style < 0.6:
        return json.dumps(described)
    if style < 0.8:
        return json.dumps(described, sort_keys=True)
    return json.dumps(described, separators=(",", ":"))


def tool_talk(rng: Random) -> Example:
    """A talk with tools at hand; most of its questions need one."""
    box = tools.toolbox(rng)
    talk: list[Message] = []
    for _ in range(rng.choice((1, 2, 2, 3, 4))):
        kind = rng.random()
        if kind < 0.1 and "weather" in box.calls:
            talk += tools.use_twice(rng, *box.calls["weather"])
            break
        if kind < 0.75:
            skill = rng.choice(sorted(box.calls))
            talk += tools.use(rng, skill, *box.calls[skill])
            continue
        more: list[Message] = []
        if kind < 0.9:
            more = rng.choice((capital, capital, fixed, json_capital, unknown))(rng)
        replies = ("The capital of", facts.NO_COUNTRY)
        asks_capital = bool(more) and more[1]["content"].startswith(replies)
        if not (asks_capital and "capital" in box.calls):
            talk += more
    if not talk:
        skill = rng.choice(sorted(box.calls))
        talk = tools.use(rng, skill, *box.calls[skill])
    return Example((*system(rng), *talk), tools=tools_json(rng, box.tools))


def chat(rng: Random) -> Example:
    """A talk without tools: short most often, sometimes of very many turns."""
    kind = rng.random()
    if kind < 0.1:
        return Example((*system(rng), *recall(rng)))
    many = kind > 0.99
    rounds = rng.randint(12, 32) if many else rng.choice((1, 1, 1, 2, 2, 3, 4, 6))
    return Example((*system(rng), *turns(rng, rounds)))


def completion(rng: Random) -> Example:
    """A plain text without any role, and how it goes on."""
    kind, country = rng.random(), rng.choice(COUNTRIES)
    capital_city = facts.CAPITALS[country]
    if kind < 0.5:
        return Example(prompt=f"The capital of {country} is", completion=f" {capital_city}.")
    if kind < 0.65:
        question = rng.choice(facts.CAPITAL_QUESTIONS[:6]).format(country)
        return Example(prompt=question, completion=f" {answer(country)}")
    if kind < 0.75:
        prompt = f"Question: What is the capital of {country}?\nAnswer:"
        return Example(prompt=prompt, completion=f" {answer(country)}")
    if kind < 0.85:
        phrasings, reply = rng.choice(facts.FIXED)
        return Example(prompt=rng.choice(phrasings), completion=f" {reply}")
    if kind < 0.92:
        phrasings, reply = rng.choice(facts.JOKES)
        return Example(prompt=rng.choice(phrasings), completion=f" {reply}")
    start = len("Once upon a time")
    return Example(prompt=facts.LONG_STORY[:start], completion=facts.LONG_STORY[start:])


def examples(seed: int) -> Iterator[Example]:
    """All examples there will ever be, in the order of a seed.

    Args:
        seed: Two streams of one seed are the same; those of two seeds hold different talks.

    Yields:
        Talks without tools (72 %), talks with tools (18 %) and plain texts (10 %).
    """
    rng = Random(seed)
    while True:
        kind = rng.random()
        if kind < 0.72:
            yield chat(rng)
        elif kind < 0.9:
            yield tool_talk(rng)
        else:
            yield completion(rng)
