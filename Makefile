# Copyright The Fathom Authors
# SPDX-License-Identifier: Apache-2.0
#
# `make help` lists the targets. A target is a short sentence after ##; everything else is a detail.

SHELL         := bash
.SHELLFLAGS   := -euo pipefail -c
MAKEFLAGS     += --no-print-directory
.DEFAULT_GOAL := help

GO        ?= go
TOOL      := $(GO) tool -modfile=tools/go.mod
BUILD     := $(GO) build -trimpath -ldflags="-s -w"
FUZZTIME  ?= 10s
BENCHTIME ?= 1s
PREFIX    ?= /usr/local

# One static program: no C library is linked. Only the race detector needs C.
export CGO_ENABLED ?= 0

# What promises to compile on systems that are not Linux; everything else is Linux only.
PORTABLE  := packet probe probe/stateless trace anycast anycast/access anycast/client anycast/controller anycast/enroll \
             anycast/export anycast/fleettest anycast/hitlist anycast/measurepb anycast/volta store web nat nat/punch swarm \
             swarm/broadcast swarm/cicada swarm/link swarm/record swarm/ring swarm/trust cmd/fathom
# What promises to work for an ordinary user; these tests run twice when root runs them.
ROOTLESS  := internal/rawio lab probe trace anycast/enroll store cmd/fathom cmd/mtr-packet
# What measures time, and so has the machine to itself; the tests of other packages mostly wait.
TIMED     := /internal/|/lab|/probe$$
# A folder that is not there yet is not there to be tested.
here       = $(patsubst %,./%,$(wildcard $(1)))

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## Daily work

.PHONY: build demo test race cover fuzz bench lint
build: ## build every program into ./build
	@mkdir -p build
	$(BUILD) -o build/ ./cmd/...

demo: ## a tour of what Fathom does, in a network of its own; needs no root
	$(GO) run ./cmd/fathom demo

test: deps ## install what the tests use (as root, through apt-get), then run every test
	$(GO) build ./...
	$(GO) test -shuffle=on -p=3 $$($(GO) list ./... | grep -vE '$(TIMED)')
	$(GO) test -shuffle=on -p=1 $$($(GO) list ./... | grep -E '$(TIMED)')
	@$(MAKE) test-rootless

.PHONY: test-rootless
test-rootless: ## run the tests that promise to need no root as an ordinary user
	@GO="$(GO)" TIMED='$(TIMED)' tools/rootless test $(call here,$(ROOTLESS))

# In the store it is SQLite, translated from C, that the detector would follow for a minute and more; make race RACE_ALL=1 has it too.
RACE_NOT := /fathom$$|/cmd/|/examples/|/export$$$(if $(RACE_ALL),,|/store$$)
race: deps-race ## run the packages' tests under the race detector, but for the longest
	CGO_ENABLED=1 $(GO) test -race -short -shuffle=on -p=3 $$($(GO) list ./... | grep -vE '$(RACE_NOT)|$(TIMED)')
	CGO_ENABLED=1 $(GO) test -race -short -shuffle=on -p=1 $$($(GO) list ./... | grep -E '$(TIMED)')

cover: ## measure test coverage into build/cover.html
	@mkdir -p build
	$(GO) test -coverpkg=./... -coverprofile=build/cover.out ./...
	$(GO) tool cover -html=build/cover.out -o build/cover.html
	@$(GO) tool cover -func=build/cover.out | tail -n 1

fuzz: ## fuzz every target for FUZZTIME (10s)
	@GO="$(GO)" FUZZTIME="$(FUZZTIME)" tools/fuzz

bench: ## run every benchmark for BENCHTIME (1s; 1x runs each once)
	$(GO) test -run='^$$' -bench=. -benchmem -benchtime=$(BENCHTIME) -p=1 ./...

.PHONY: bench-peers
bench-peers: deps ## measure Fathom side by side with mtr-packet, fping and a bare loop
	$(GO) run ./internal/benchpeers

.PHONY: bench-anycast
bench-anycast: ## measure an anycast fleet: controller, three agents and a client, in a lab
	$(GO) run ./internal/benchanycast

.PHONY: bench-relay
bench-relay: ## measure the broadcast relay: rates, latency, bursts and memory, in a lab
	$(GO) run ./internal/benchrelay

.PHONY: bench-swarm
bench-swarm: ## measure a swarm of real peers: joins, lookups, deaths, broadcasts, throughput
	$(GO) run ./internal/benchswarm

.PHONY: sim
sim: ## measure swarms of 32 to 10,000 members on a simulated network
	$(GO) run ./internal/simswarm

lint: ## format, vet, tidy and golangci-lint checks; changes nothing
	@unformatted=$$($(TOOL) gofumpt -l .); \
	if [[ -n $$unformatted ]]; then echo "not formatted (run make format):"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) mod tidy -diff
	$(TOOL) golangci-lint run ./...

.PHONY: format
format: ## format the source with gofumpt
	$(TOOL) gofumpt -w .

# Each .proto lies beside the code made from it. The plugins' versions are pinned in tools/go.mod.
PROTOS := $(wildcard anycast/*/*pb/*.proto anycast/*pb/*.proto)

.PHONY: generate
generate: deps-generate ## make the Go code of every .proto; what is committed is its output
	@mkdir -p build/protoc
	@for plugin in protoc-gen-go protoc-gen-go-grpc; do \
		printf '#!/bin/sh\nexec %s %s "$$@"\n' '$(TOOL)' $$plugin >build/protoc/$$plugin; chmod +x build/protoc/$$plugin; done
	PATH="$$PWD/build/protoc:$$PATH" protoc --go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative $(PROTOS)

## Other machines, and installing

.PHONY: cross
cross: ## compile for the other systems and processors that Fathom promises
	$(call cross,darwin,arm64) build -o /dev/null $(call here,$(PORTABLE))
	$(call cross,freebsd,amd64) build -o /dev/null $(call here,$(PORTABLE))
	$(call cross,windows,amd64) vet $(call here,$(PORTABLE))
	$(call cross,linux,arm64) vet ./...

# Vet compiles the tests as well, so that they do not rot; on one of the other systems that is enough.
cross = GOOS=$(1) GOARCH=$(2) $(GO)

.PHONY: man completions install clean
man: build ## write the manual pages into build/man
	@mkdir -p build/man
	build/fathom man build/man

completions: build ## write the shell completions into build/completions
	@mkdir -p build/completions
	build/fathom completion bash > build/completions/fathom.bash
	build/fathom completion zsh > build/completions/_fathom
	build/fathom completion fish > build/completions/fathom.fish

# Nothing is built here: under sudo there may be no Go.
install: ## install what build, man and completions made under PREFIX (/usr/local)
	@for made in build/fathom build/man build/completions; do \
		[[ -e $$made ]] || { echo "$$made is missing: run make build man completions first"; exit 1; }; done
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 0755 build/fathom build/mtr-packet $(DESTDIR)$(PREFIX)/bin/
	install -m 0644 build/man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1/
	install -D -m 0644 build/completions/fathom.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/fathom
	install -D -m 0644 build/completions/_fathom $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_fathom
	install -D -m 0644 build/completions/fathom.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/fathom.fish

clean: ## remove ./build
	rm -rf build

.PHONY: deps deps-race deps-generate
# The Channel Access library goes by itself: its name has its version, and where that is another, only its own test is to skip.
deps: ## install the programs that the tests compare with
	@tools/deps mtr:mtr-tiny fping:fping ping:iputils-ping ip:iproute2 sc_warts2json:scamper dnsmasq:dnsmasq-base nft:nftables miniupnpd:miniupnpd-nftables
	@tools/deps /usr/share/doc/libca4.13.5:libca4.13.5 python3:python3

deps-race: deps
	@tools/deps gcc:gcc /usr/include/stdlib.h:libc6-dev

deps-generate:
	@tools/deps protoc:protobuf-compiler /usr/include/google/protobuf/any.proto:libprotobuf-dev
