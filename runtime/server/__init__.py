"""A speech server: OpenAI's endpoints on one scheduler. Needs the extra `server`."""
