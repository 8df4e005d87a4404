"""OpenAI's Responses API over chat: requests to chat's fields, completions to responses."""
