# Every target is one command, which can be typed as well. Settings, all by environment:
#   CLUSTER          local (default): a Kubernetes made on this machine; current: that of your kubeconfig; kind
#   BACKLOT_CLUSTER  the local cluster's name (default: dev)
#   BACKLOT_CACHE    where all that is built or run is kept (default: ~/.cache/backlot)

.DEFAULT_GOAL := help
.PHONY: help cluster clean-cluster cluster-test csi-test images image-test

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

image-test: ## Test every database image without Kubernetes
	cargo xtask image test --all
