# Every command of the project. `make run` and `make test` set up what they need; you need only Python >= 3.11, make and a
# package index. ARGS goes to the program: make run ARGS="--simulator --port 9000".

ARGS ?=
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help run test check chaos fuzz bench lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: ## Start everything on this machine: Valkey, the API, a worker and an LLM
	@scripts/set-up local model
	@exec .venv/bin/tokenspool dev $(ARGS)

test: ## Check the code, then run the tests
	@scripts/set-up dev model
	@scripts/check
	@scripts/test $(ARGS)

check: ## Check format, lint, types and the deployment files
	@scripts/set-up dev
	@scripts/check

chaos: ## Run the longer tests: real processes killed and stopped under load
	@scripts/set-up dev model
	@scripts/test -n 0 -m chaos $(ARGS)

fuzz: ## Run 50,000 hostile bodies, schemathesis over the OpenAPI document, and 100,000 odd streams of an LLM
	@scripts/set-up dev
	@scripts/test -n 0 -m fuzz -s $(ARGS)

bench: ## Measure the figures of the README on this machine
	@scripts/set-up dev model
	@.venv/bin/python -m bench $(ARGS)

lock: ## Resolve the dependencies again into requirements/*.txt (ARGS=--upgrade for newer versions)
	@scripts/lock $(ARGS)

clean: ## Remove the environment and the caches; .tokenspool/ (the jobs) is kept
	rm -rf .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache .hypothesis
