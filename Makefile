# Everything lives in .venv; a second run of any target installs nothing again.
PYTHON ?= python3
BIN := .venv/bin
# Options for `make serve`, for example ARGS="--port 9000 --model chat=/models/chat.gguf".
ARGS ?=
# What llama.cpp is built for: auto (looks for a card), cpu or cuda; remembered. For example `make serve BUILD=cpu`.
BUILD ?=
# Options for pytest, for example PYTEST="-k config".
PYTEST ?=
# The tests start hundreds of processes: compiled once, each is there half a second sooner.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install serve quick fix docs test coverage test-gpu gpu-bundle check clients bench trace demo deps-serve deps-install deps-test
help:
	@echo "make serve       install what serving GGUF models needs and serve (ARGS=\"--port 9000\")"
	@echo "make install     install both engines"
	@echo "make test        install what tests need and run them all"
	@echo "make coverage    the same, and how much of server, backends and quantize it runs"
	@echo "make test-gpu    run the tests that need a card"
	@echo "make check       format check, lint, types, tests"
	@echo "make quick       lint, types and the quickest tests, in less than a minute"
	@echo "make fix         format, mend what the linter can mend, write the pages that are made of the code"
	@echo "make docs        build docs/ as a site in docs/_build"
	@echo "make clients     real clients (openai, anthropic, llm, langchain, openai-node) on both backends, in .venv-clients"
	@echo "make bench       compare the server with bare llama.cpp"
	@echo "make trace       how one streamed chat walks through the code: files touched, changes of file"
	@echo "make gpu-bundle  what bench/gpu.sh needs on a CUDA machine without a network (ARGS=\"--python 3.12\")"
	@echo "make demo        train the demo model again"

deps-serve deps-install deps-test:
	@command -v $(PYTHON) >/dev/null || { echo "onecard: there is no $(PYTHON). hint: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) deploy/install.py $(@:deps-%=%) $(if $(BUILD),--build $(BUILD))

install: deps-install

serve: deps-serve
	@exec $(BIN)/onecard serve $(ARGS)

# Two runs, so that what needs no engine is told first. A file's tests stay in one process and share its servers.
# There are more processes than two cores have room for: most of the first run waits, for servers, sockets and limits
# (with 4 of them two cores were idle 39 % of the time, and http and surfaces took 89 s; with 6 they take 72 s).
# pytest's exit code 5 means that nothing was selected, which PYTEST="-k ..." may well do to one of the runs.
RUN := python -m pytest
SPREAD := --dist loadfile --no-loadscope-reorder
test: deps-test
	@$(BIN)/$(RUN) -n 6 $(SPREAD) -m "not engine and not gpu" $(PYTEST); pure=$$?; \
	$(BIN)/$(RUN) -n 3 $(SPREAD) -m "engine and not gpu" $(PYTEST); engine=$$?; \
	if [ $$pure -eq 5 ] && [ $$engine -eq 5 ]; then echo "no test was selected"; exit 5; fi; \
	if [ $$pure -ne 0 ] && [ $$pure -ne 5 ]; then echo "tests without an engine: exit $$pure"; exit $$pure; fi; \
	if [ $$engine -ne 0 ] && [ $$engine -ne 5 ]; then echo "tests with an engine: exit $$engine"; exit $$engine; fi

# The same, with every line counted, of children too. It takes more than twice as long, so `make test` does without.
coverage: deps-test
	@rm -rf .coverage && mkdir .coverage
	@$(MAKE) --no-print-directory test RUN="coverage run -m pytest"; tests=$$?; $(BIN)/coverage combine -q; \
	for part in server backends quantize; do \
	printf 'coverage of %s: %s %%\n' $$part $$($(BIN)/coverage report --include="$$part/*" --format=total); done; exit $$tests

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

# What to run before each commit: no engine, no servers.
quick: deps-test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -n 2 -m "not engine and not gpu" tests/test_layering.py tests/test_documents.py tests/test_dead_code.py tests/scheduler tests/formats tests/config $(PYTEST)

fix: deps-test
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .
	@PYTHONPATH=. $(BIN)/python docs/generate.py

docs: deps-test
	@PYTHONPATH=. $(BIN)/python docs/generate.py
	@$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build

clients: deps-install
	@$(PYTHON) tests/clients/run.py

bench: deps-test
	@$(BIN)/python -m bench $(ARGS)

trace: deps-test
	@$(BIN)/python -m bench.hops

demo: deps-test
	@$(BIN)/python -m demo.train $(ARGS)
