# `make help` lists the targets. Each works on a fresh machine, with nothing before it.

CARGO ?= cargo
# Always the whole workspace: for a single crate cargo would compile shared crates again, with fewer features.
BUILD = $(CARGO) build --workspace --bins
TARGET = $(or $(CARGO_TARGET_DIR),target)
DEV = $(TARGET)/debug/dev
# Statements are checked against the committed descriptions in .sqlx: building needs no database.
export SQLX_OFFLINE = true

.DEFAULT_GOAL = help
.PHONY: help demo test conformance apiserver dev check sbom image pods cluster bench capacity sqlx tools

help: ## List these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: tools ## An on-sale on real servers: seats fought for and paid, live progress, kills in the middle, figures at the end
	$(BUILD)
	$(DEV) demo

test: tools check ## All tests, on real servers; TEST=word picks those of the proofs whose name holds the word
	$(BUILD)
	$(DEV) sqlx --check
	$(DEV) previous
	$(CARGO) test --workspace --test main -- $(TEST)

conformance: tools ## Adapter, alerts, dashboards, recipes, image and chart against what others wrote; TEST=word picks; needs Go, Python, a JDK
	@deploy/local/tools conformance
	$(BUILD) --examples
	$(CARGO) test --workspace --test conformance -- $(TEST)

apiserver: tools ## Chart and operators' examples judged by a real kube-apiserver, built first (15 min); CRDS=folder: more definitions; needs Go, Python
	@deploy/local/tools apiserver
	CRDS=$(abspath $(CRDS)) $(CARGO) test --workspace --test conformance -- apiserver

dev: tools ## Hold the stack open with `holdfast run` and a payment provider on it; addresses in .dev/stack.json; LOCKED=1 shuts every door
	$(BUILD)
	$(DEV) up $(if $(LOCKED),--locked)

check: tools ## The quick one: format, clippy, dependencies, unit and property tests; no servers
	@deploy/local/tools cargo-deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	.dev/tools/cargo-deny/bin/cargo-deny --log-level error check bans licenses sources
	$(CARGO) test --workspace --lib --test published --test structure --test decode --test properties --test monitoring

sbom: ## The bill of materials of the binary, as CycloneDX JSON: target/reports/holdfast.cdx.json
	@deploy/local/tools cargo-cyclonedx
	mkdir -p $(TARGET)/reports
	.dev/tools/cargo-cyclonedx/bin/cargo-cyclonedx cyclonedx --manifest-path workers/Cargo.toml --describe binaries \
	    --target x86_64-unknown-linux-gnu --format json --spec-version 1.5
	sed 's|file://$(CURDIR)/|file:///|g' workers/holdfast_bin.cdx.json > $(TARGET)/reports/holdfast.cdx.json
	rm workers/holdfast_bin.cdx.json tests/dev_bin.cdx.json

image: sbom ## The image holdfast:<version>, by buildah; BUILDER, BASE and BINARY as deploy/README.md has them
	@deploy/local/tools image
	BUILDER=$(BUILDER) BASE=$(BASE) BINARY=$(BINARY) deploy/image/build

cluster: tools ## Three of each server, two of each worker: lose each in turn, and print how long answers stay away; ONLY=text picks rows
	$(BUILD)
	$(DEV) cluster $(if $(ONLY),--only "$(ONLY)")

pods: tools ## The chart's pods on real servers by podman, restarted in the middle; wants the image (make image)
	@deploy/local/tools pods
	$(BUILD)
	$(DEV) pods

bench: tools ## Measure throughput, latency and cost; report in target/reports/bench.json
	$(BUILD) --release
	$(TARGET)/release/dev bench
	$(CARGO) bench --workspace --bench mechanisms

capacity: tools ## Measure the costs anew that `holdfast plan` works with, and have docs/capacity.md show what it prints
	$(BUILD) --release
	$(TARGET)/release/dev bench --only disk,cpu,relay,checkout,scale
	$(TARGET)/release/holdfast plan --costs $(TARGET)/reports/bench.json --json > $(TARGET)/reports/plan.json
	python3 -c 'import json; costs = json.load(open("$(TARGET)/reports/plan.json"))["costs"]; \
	    open("workers/src/plan/measured.json", "w").write(json.dumps(costs, indent=2) + "\n")'
	UPDATE=1 $(CARGO) test --workspace --lib capacity

sqlx: tools ## Refresh .sqlx after a change of a statement or a migration
	$(CARGO) build --workspace --bin dev
	$(DEV) sqlx

tools:
	@deploy/local/tools
