"""What every room builds on: requests and completions, options, checks, files."""
