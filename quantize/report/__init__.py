"""The report card: what each output weighs and what it lost, as a table, JSON, Markdown and a picture."""
