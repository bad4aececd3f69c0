# make demo shows the whole story on one machine, make test checks all of it.
# Both need nothing but Go (and a Linux kernel for the demo).

GO         ?= go
FUZZTIME   ?= 10s
FUZZDIRS   ?= .
FUZZJOBS   ?= 1
FUZZRUNS   ?= 100000000
TESTFLAGS  ?=
BENCHFLAGS ?=
SOAK       ?= 10m
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
PLATFORMS   = linux/amd64 linux/arm64 darwin/amd64 darwin/arm64

.PHONY: release reproducible packages build test race plain allocs vet lint cross hostile fuzz nightly nat scale bench soak soak-hour latency demo clean

# One static binary. The same source gives the same bytes.
build:
	CGO_ENABLED=0 $(GO) build -trimpath -o pilotctl ./cmd/pilotctl

# Go sets CGO_ENABLED to 0 where it finds no C compiler, and the race detector
# needs one.
test:
	@if [ "$$($(GO) env CGO_ENABLED)" = 1 ]; then \
		$(MAKE) --no-print-directory -k race allocs; \
	else \
		echo "make: no C compiler found: testing without the race detector" >&2; \
		$(MAKE) --no-print-directory plain; \
	fi

# Allocations are counted in a run of their own: the race detector makes some.
# TestLong... are shorter under it, and whole in the second run.
race:
	$(GO) test $(TESTFLAGS) -race -skip '^TestAlloc' -parallel 3 -timeout 20m ./...

plain:
	$(GO) test $(TESTFLAGS) -parallel 3 -timeout 20m ./...

allocs:
	@set -e; dirs=$$(grep -rlE --include='*_test.go' '^func Test(Alloc|Long)' . | xargs -n 1 dirname | sort -u); \
	[ -n "$$dirs" ] || exit 0; \
	echo "$(GO) test $(TESTFLAGS) -run '^Test(Alloc|Long)'" $$dirs >&2; \
	$(GO) test $(TESTFLAGS) -run '^Test(Alloc|Long)' -timeout 5m $$dirs

vet:
	$(GO) vet ./...

lint: vet
	@unformatted=$$(gofmt -l .); \
	[ -z "$$unformatted" ] || { echo "gofmt: $$unformatted" >&2; exit 1; }
	$(GO) run $(STATICCHECK) ./...

cross:
	@set -e; for platform in $(PLATFORMS); do \
		os=$${platform%/*}; arch=$${platform#*/}; \
		echo "build $$platform"; mkdir -p dist; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -trimpath ./...; \
		CGO_ENABLED=0 GOOS=$$os GOARCH=$$arch $(GO) build -trimpath -ldflags '-s -w' -o dist/pilotctl-$$os-$$arch ./cmd/pilotctl; \
	done

# What SECURITY.md promises, at full size: an hour, needs root, and the lab for
# some of it. Every figure of its table is in what this prints.
hostile:
	PILOT_HOSTILE=1 $(GO) test -v -count=1 -p 1 -timeout 120m -run '^TestHostile' ./...

# Each fuzz target below FUZZDIRS for FUZZTIME, a time or a number of executions
# such as 1000x; their seeds run in every "make test". FUZZJOBS of them run side by
# side, with one worker each if that is not 1; what they share is built before.
fuzz:
	@set -e; list=$$(grep -roH --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' $(FUZZDIRS) | sort | sed 's/:func / /'); \
	for dir in $$(echo "$$list" | cut -d ' ' -f 1 | xargs -n 1 dirname | sort -u); do $(GO) test -c -fuzz . -o /dev/null ./$$dir; done; \
	echo "$$list" | GO='$(GO)' FUZZTIME='$(FUZZTIME)' FUZZFLAGS='$(if $(filter-out 1,$(FUZZJOBS)),-parallel 1)' xargs -P $(FUZZJOBS) -n 2 .ci/fuzz

# FUZZRUNS executions in total: a minute for each target, until it is enough. Some hours.
nightly:
	@.ci/nightly $(FUZZRUNS)

# Pairs of real NATs and events, measured: needs root and the lab, takes most of
# an hour. Goes on where it was interrupted; natt/natlab/RESULTS.md has it all.
nat:
	PILOT_NAT=1 $(GO) test -count=1 -v -timeout 120m -run '^TestNATs$$' ./cmd/pilotctl/e2e

# What a server needs for ten thousand agents, and an agent for ten thousand
# peers: six minutes, to make the peers and until they are asleep; prints memory
# and times.
scale:
	PILOT_SCALE=1 $(GO) test -count=1 -v -timeout 40m -p 1 -run '^TestScale' ./natt/rendezvous ./overlay

# Beside wireguard-go, and Nebula where it is installed, on a machine that does nothing
# else: a quarter of an hour, needs root, iperf3 and ping; wrk and ethtool for some of
# it. Writes the results.
bench:
	$(GO) run ./packaging/bench $(BENCHFLAGS)

# HTTP and MQTT through the overlay beside the bare network, on a machine that
# does nothing else: six minutes, needs root, wrk and mosquitto. Writes the
# results.
latency:
	PILOT_LATENCY=1 $(GO) test -count=1 -v -timeout 30m -run '^TestLatency$$' ./cmd/pilotctl/e2e

# Streams over a bad link for SOAK: bytes, memory and descriptors must be right at
# the end. The same for hours of virtual time is TestHostileSoak.
soak:
	$(GO) run ./packaging/bench -soak $(SOAK)

soak-hour:
	$(GO) run ./packaging/bench -soak 1h

# All that is handed out, in dist/release: programs, deb, rpm, images, bills of
# materials, checksums. Builds nfpm from its sources the first time.
release:
	$(GO) run ./packaging/release

# The last commit, built twice in different places: the same bytes.
reproducible:
	$(GO) run ./packaging/release -reproducible

# What was released, installed, upgraded, removed and run by a systemd of its own: root,
# debootstrap, systemd-container and rpm; lintian where it is there. PILOT_DEBIAN may name a
# root with systemd that is there already.
packages: release
	PILOT_PACKAGES=dist/release $(GO) test -count=1 -v -timeout 30m -run '^TestPackages$$' ./packaging/release

demo: build
	./pilotctl demo

clean:
	rm -rf pilotctl dist
