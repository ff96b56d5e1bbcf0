"""OpenAI's clients, unmodified, each in its own environment, against `embedq up`."""
