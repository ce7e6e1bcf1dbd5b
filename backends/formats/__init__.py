"""How model families write reasoning and tool calls: one file per format, pure text.

A format is read by the server and enforced by the worker, so both import it: the grammar that forces a call and the
reader that takes it apart stand beside each other. Imports nothing but the standard library, jiter and msgspec.
"""
