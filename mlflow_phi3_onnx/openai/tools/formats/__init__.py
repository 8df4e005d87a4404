"""How models write tool calls: one module a format, and the registry of them."""
