# The commands of everyday work on Roost. `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help run build test lint fmt bench soak fuzz audit

# Continuous integration reads the output as plain text.
ifdef CI
export CARGO_TERM_COLOR := never
export CARGO_TERM_PROGRESS_WHEN := never
export NEXTEST_PROFILE := ci
endif

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

run: ## install what is missing, build a release, start a node with a database `demo`
	@scripts/install-run-dependencies
	cargo build --locked --release -p roost
	@exec scripts/run

build: ## build the release binary (target/release/roost)
	@scripts/install-run-dependencies
	cargo build --locked --release -p roost

test: ## everything: format, lints, dependencies, unit, integration and end-to-end tests with real clients
	@scripts/install-test-dependencies
	$(MAKE) --no-print-directory lint
	scripts/nextest run --locked --workspace

lint: ## check format, lints and the dependency tree, and change nothing
	cargo fmt --all --check $(if $(CI),-- --color=never)
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo deny --locked check --hide-inclusion-graph bans licenses sources

fmt: ## format the code
	cargo fmt --all

bench: ## measure against the bars of SPECIFICATION.md, beside bare Postgres and PgBouncer
	@scripts/install-bench-dependencies
	cargo build --locked --release -p roost
	cargo run --locked --release -p roost-bench

soak: ## hours of load and faults with every acknowledged write accounted for (ROOST_SOAK_MINUTES, default 45)
	@scripts/install-test-dependencies
	cargo build --locked --release -p roost -p roost-tests --bins
	scripts/soak

fuzz: ## fuzz everything that reads bytes from a socket (FUZZ_SECONDS for each target, default 60)
	@scripts/fuzz

audit: ## check the dependency tree against the advisory database (needs a machine that reaches it)
	cargo deny --locked check advisories
