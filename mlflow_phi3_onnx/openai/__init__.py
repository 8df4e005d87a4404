"""OpenAI's wire format: requests in, responses and chunks out. Pure functions over plain data."""
