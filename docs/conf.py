"""Sphinx's configuration of the documents as a site: `make docs` builds them, and fails on a dead link."""

project = "onecard"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "onecard"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
