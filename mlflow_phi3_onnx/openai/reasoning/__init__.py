"""How models think aloud before they answer, one module each way."""
