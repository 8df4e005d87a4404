"""How much of each thing the files of a model may have.

Every count and size that comes from a file is held to one of these before memory or time is spent
in proportion to it. Each is well above what published models have.
"""

MAX_JSON_BYTES = 1 << 20
"""A JSON document. Published configurations have some kilobytes."""

MAX_LISTING_BYTES = 1 << 24
"""A JSON document that lists tokens or tensors. Published ones have up to some megabytes."""

MAX_TOKENIZER_BYTES = 3 << 24
"""A ``tokenizer.json``. The largest that are published have 33 MB."""

MAX_TOKENS = 1 << 19
"""Tokens of a ``tokenizer.json``. Gemma's have 262,144."""

MAX_VALUES = 1 << 20
"""Values of a JSON document."""

MAX_TOKENIZER_VALUES = 3 << 20
"""Values of a ``tokenizer.json``: one or two for every token, and three for every merge."""

MAX_YAML_BYTES = 1 << 19
"""A YAML document, which takes some seconds for a megabyte. MLmodel files have some kilobytes."""

MAX_DIGITS = 1000
"""Characters of an integer in a YAML document."""

MAX_DEPTH = 64
"""Levels of nesting in a JSON or YAML document."""

MAX_TEMPLATE_BYTES = 1 << 20
"""A chat template. Published ones have up to 30 kB."""

MAX_LAYERS = 1024
MAX_HEADS = 1024
MAX_HEAD_SIZE = 1 << 14
MAX_CONTEXT = 2**31 - 1
MAX_VOCABULARY = 1 << 22
MAX_END_IDS = 1024

MAX_ADDED_TOKENS = 1 << 16
"""Added tokens of a tokenizer, which are searched for in every text."""

MAX_TOKEN_CHARACTERS = 256
"""Characters of one added token."""

MAX_ADDED_CHARACTERS = 1 << 21
"""Characters of all added tokens. Published ones have up to a million, for sounds and pictures."""

MAX_TOKENIZER_STEPS = 128
"""Steps of a tokenizer's normalizer, pre-tokenizer or decoder, each of which reads every text."""

MAX_WORD_CHARACTERS = 1000
"""Characters that a WordPiece model may take for one word; it tries all parts of it."""

MAX_UNUSED_IDS = 1 << 16
"""Token ids below a tokenizer's highest that no token has. A grammar's masks count them."""

MAX_TEXT_GROWTH = 128
"""The most characters that all steps of a tokenizer may make of one. T5's could make 72."""

MAX_GRAPH_FIELDS = 2_000_000
"""Fields of the protocol buffer that a graph is; two millions are read in some seconds."""

MAX_GRAPH_DEPTH = 16
"""Levels of graphs inside of graphs."""

MAX_RANK = 16
"""Axes of a tensor."""
