# Every target is one command, which can be typed as well. Settings, all by environment:
#   CLUSTER          local (default): a Kubernetes made on this machine; current: that of your kubeconfig; kind
#   BACKLOT_CLUSTER  the local cluster's name (default: dev)
#   BACKLOT_CACHE    where all that is built or run is kept (default: ~/.cache/backlot)

.DEFAULT_GOAL := help
.PHONY: conform-test help demo test check lint unit e2e e2e-all install generate cluster clean-cluster cluster-test csi-test images image-test image-test-all

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Watch one operator run three database types: create, use, change, break, verify
	cargo xtask demo

test: lint unit conform-test image-test e2e ## Everything that must be green: format, lints, unit tests, images, real engines on a real Kubernetes

check: lint unit ## The fast loop: format, lints and every test that needs no cluster

lint: ## Format and lints, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

unit: ## Every test that needs neither a container engine nor a cluster
	cargo test --workspace

conform-test: ## Test the conformance kit: a good image passes, and every rule that is broken on purpose is caught
	cargo xtask image conform fake -- --level 2 --patience 120
	cargo xtask image conform-selftest

e2e: ## The life of the types whose tests are quick, on a local cluster of its own, with real engines; TYPE=name for one type
	cargo xtask e2e --promise life_of_every_type $(if $(TYPE),--type $(TYPE))

e2e-all: ## Every promise with every type on a local cluster of their own; longer, not part of make test
	cargo xtask e2e $(if $(TYPE),--type $(TYPE),--all-types)

install: ## Build the images and install the operator and the classes whose tests are quick on the cluster for development
	cargo xtask install

generate: ## Write generated files: CRDs, JSON Schemas, tables
	UPDATE_GENERATED=1 cargo test --test generated

cluster: ## Build and start the cluster for development, or start what of it does not run
	cargo xtask cluster up

clean-cluster: ## Remove the cluster and all its data
	cargo xtask cluster down

cluster-test: ## Prove on clusters of its own that the local cluster keeps its promises (3 minutes)
	cargo xtask cluster selftest

csi-test: ## Test the local cluster's storage driver, with the CSI project's conformance suite
	cargo xtask cluster csi-sanity

images: ## Build every container image that changed
	cargo xtask image build --all

# Types whose own tests fit into the time of `make test` have a file `quick` beside them; the others take long to build or to run.
TESTED = $(patsubst images/%/test/quick,%,$(wildcard images/*/test/quick))
ALL_TESTED = $(patsubst images/%/test/run,%,$(wildcard images/*/test/run))

image-test: ## Test without Kubernetes the images whose tests fit the time
	@echo "not tested here, for their time: $(filter-out $(TESTED),$(ALL_TESTED)); make image-test-all does"
	cargo xtask image test $(TESTED)

image-test-all: ## Test every database image without Kubernetes; longer, not part of make test
	cargo xtask image test $(ALL_TESTED)
