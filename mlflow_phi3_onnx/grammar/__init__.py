"""Grammars that completions are held to."""
