# Everything lives in .venv; a second run of any target installs nothing again.
PYTHON ?= python3
BIN := .venv/bin
# Options for `make serve`, for example ARGS="--port 9000 --model chat=/models/chat.gguf".
ARGS ?=
# Options for pytest, for example PYTEST="-k config".
PYTEST ?=

.PHONY: help install serve test test-gpu gpu-bundle check clients bench demo deps-serve deps-install deps-test
help:
	@echo "make serve       install what serving GGUF models needs and serve (ARGS=\"--port 9000\")"
	@echo "make install     install both engines"
	@echo "make test        install what tests need and run them all"
	@echo "make test-gpu    run the tests that need a card"
	@echo "make check       format check, lint, types, tests"
	@echo "make clients     real clients (openai, anthropic, llm, langchain, openai-node) on both backends, in .venv-clients"
	@echo "make bench       compare the server with bare llama.cpp"
	@echo "make gpu-bundle  what bench/gpu.sh needs on a CUDA machine without a network (ARGS=\"--python 3.12\")"
	@echo "make demo        train the demo model again"

deps-serve deps-install deps-test:
	@$(PYTHON) deploy/install.py $(@:deps-%=%)

install: deps-install

serve: deps-serve
	@exec $(BIN)/onecard serve $(ARGS)

# Two runs: engines spin at their barriers, so tests with a real engine never run beside each other.
# pytest's exit code 5 means that nothing was selected, which PYTEST="-k ..." may well do to one of the runs.
test: deps-test
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not engine and not gpu" $(PYTEST); pure=$$?; \
	$(BIN)/python -m pytest -m "engine and not gpu" $(PYTEST); engine=$$?; \
	if [ $$pure -eq 5 ] && [ $$engine -eq 5 ]; then echo "no test was selected"; exit 5; fi; \
	if [ $$pure -ne 0 ] && [ $$pure -ne 5 ]; then echo "tests without an engine: exit $$pure"; exit $$pure; fi; \
	if [ $$engine -ne 0 ] && [ $$engine -ne 5 ]; then echo "tests with an engine: exit $$engine"; exit $$engine; fi

test-gpu: deps-test
	@$(BIN)/python -m pytest -m gpu $(PYTEST)

gpu-bundle:
	@$(PYTHON) deploy/bundle.py $(ARGS)

check: deps-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy deploy/install.py deploy/bundle.py
	@$(MAKE) --no-print-directory test

clients: deps-install
	@$(PYTHON) tests/clients/run.py

bench: deps-test
	@$(BIN)/python -m bench $(ARGS)

demo: deps-test
	@$(BIN)/python -m demo.train $(ARGS)
