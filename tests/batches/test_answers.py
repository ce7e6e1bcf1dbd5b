"""The lines and figures of a batch's answers."""

import json

from server.batches.answers import usage_of


def test_tokens_are_counted_alike_whatever_surface_answered():
    openai = {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}}
    anthropic = {"input_tokens": 6, "cache_read_input_tokens": 4, "output_tokens": 2}
    for usage in (openai, anthropic):
        told = usage_of([json.dumps({"usage": usage}).encode()])
        assert told == {"input_tokens": 10, "cached_tokens": 4, "output_tokens": 2, "reasoning_tokens": 0}
