"""The surfaces beside completions: /v1/responses, /v1/messages, /infill, and what editors probe."""
