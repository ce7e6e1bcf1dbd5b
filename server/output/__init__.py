"""Pure: text deltas of a model to content, reasoning and tool calls, and those to the bytes clients read."""
