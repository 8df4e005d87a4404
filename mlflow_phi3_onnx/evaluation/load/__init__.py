"""Load tests: requests sent as callers send them, what came back in what time, and ratios."""
