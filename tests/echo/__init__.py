"""An imaginary kind of model, as a backend brings one: it says what is in a file or a text that it is sent.

A model is a file of one line, `ECHO <bytes of its weights>`. The server knows of it from the environment alone:
`ONECARD_BACKENDS=tests.echo.backend:Echoes`.
"""
