# Spore. `make run` and `make test` set up all they need; the other targets are their parts.
.DEFAULT_GOAL := build
export CGO_ENABLED := 0
export GOFLAGS := -trimpath -buildvcs=false
CMD ?= uname -a
FUZZTIME ?= 10s
BENCH ?= .

# what the binaries in bin/ are made of; run and test ask for them with a make of their own
ifneq ($(filter-out run test help clean,$(or $(MAKECMDGOALS),build)),)
SOURCES := $(shell find . \( -path ./bin -o -path ./.git \) -prune -o -name '*.go' -not -name '*_test.go' -print) go.mod go.sum $(wildcard vmm/policy/*.bpf network/syscalls/*.bpf guest/kernel/*)
endif

.PHONY: build setup kernel image run test check bench fuzz testbed lint generate clean help

CNI := bin/cni/bridge bin/cni/host-local

build: $(CNI) bin/spore bin/spore-vmm bin/spore-net bin/spore-probe bin/spore-agent bin/spore-hostinit bin/initramfs.cpio ## build the binaries into bin/

bin/spore bin/spore-vmm bin/spore-net bin/spore-probe bin/spore-agent bin/spore-hostinit: $(SOURCES)
	go build -ldflags '-s -w' -o $@ ./cmd/$(@F)

# The plugins are other people's programs, at the version that tools/cni pins.
bin/cni/bridge: plugin := main/bridge
bin/cni/host-local: plugin := ipam/host-local
$(CNI): tools/cni/go.mod tools/cni/go.sum
	cd tools/cni && go build -ldflags '-s -w' -o $(CURDIR)/$@ github.com/containernetworking/plugins/plugins/$(plugin)

bin/initramfs.cpio: bin/spore-agent
	go run ./guest/initramfs/mkinitramfs -agent bin/spore-agent -o $@

setup: ## install the Debian packages that the project needs
	scripts/setup.sh

kernel: setup ## build the guest kernel into the cache
	guest/kernel/build.sh

image: setup build ## build and import the default image
	scripts/image.sh

run: ## the main job: a program on standard input runs in a microVM
	@scripts/run.sh

test: ## set up, then pass every test, natively and on the emulated host
	@scripts/test.sh

bench: ## measure against QEMU and write bench/results/latest.json
	@scripts/bench.sh

fuzz: ## run every fuzz target for FUZZTIME
	scripts/fuzz.sh $(FUZZTIME)

testbed: build ## run CMD on the emulated host, in this directory
	@bin/spore host run -- sh -c '$(subst ','\'',$(CMD))'

lint: ## vet, and the rules over the source tree
	CGO_ENABLED=1 go vet ./... && go test ./internal/archtest

generate: ## compile the system-call policies with libseccomp
	CGO_ENABLED=1 go generate ./vmm/policy ./network/syscalls

clean: ## remove bin/; the cache stays
	rm -rf bin

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
