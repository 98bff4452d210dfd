# The front door. `make` alone lists what there is.

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
# The kinds of device; under the name virtio-KIND the program serves that kind only.
KINDS := disk net console rng vsock
EXAMPLES := $(PREFIX)/share/doc/xen-virtio/examples
# `make lab CASE="rw ext4"` runs these cases only, and so does `make vmm`.
CASE ?=
# `make fuzz`: seconds of search in all, and one target or some; all if none is named.
TIME ?= 600
TARGET ?=
# `make soak`: seconds of that search, kills of a disk's process, different states of each disk after a power cut, guests that come
# and go on Xen, kills of a worker there, and what chance starts from.
SECONDS ?= 600
KILLS ?= 100000
STATES ?= 20000
CYCLES ?= 200
WORKER_KILLS ?= 1000
SEED ?= 1
# `make coverage`, `make miri` and `make tsan`: the compiler. Of Miri also orders of events to try, and tests that are
# not for it: they make system calls that it does not know, or try inputs by the hundred thousand. Of ThreadSanitizer packages
# that look at the tree, measure, kill, or confine themselves: it makes system calls that are refused then.
NIGHTLY ?= nightly
SEEDS ?= 16
NOT_MIRI := exhaustive indices any_ record anonymous moderation rate_limit watcher domain blocking
NOT_TSAN := tests catalogue fuzz kills power-cut hostile-guest taken-over xen-virtio-bench xen-virtio
HOST = $(shell rustc -vV | sed -n 's/^host: //p')
# What `make bench-lab` compares with: a revision as git names it.
BASE ?=

.DEFAULT_GOAL := help
.PHONY: help deps build test check coverage models miri tsan catalogue demo lab vmm fuzz soak bench bench-lab install clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: deps ## Show a Xen guest using a disk, on an emulated Arm machine
	@tests/lab/demo

test: deps ## Run all tests, the lab's cases on real Xen and under other monitors included
	$(CARGO) test --workspace --quiet
	@tests/lab/run
	@tests/lab/vmm/run

check: deps ## What must hold before a commit: format, lints, documentation
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --quiet
	@if command -v shellcheck >/dev/null; then shellcheck --external-sources $$(tests/lab/scripts); \
	else echo "No shellcheck here: the lab's scripts are not looked at"; fi

coverage: deps ## Count the lines and branches that tests reach, by package; needs cargo-llvm-cov and nightly with llvm-tools
	@NIGHTLY=$(NIGHTLY) tests/coverage

models: ## Try every order of events where threads meet, with loom
	CARGO_TARGET_DIR=target/models RUSTFLAGS="--cfg loom" $(CARGO) test --quiet -p io-bus -p guest-memory --test models
	CARGO_TARGET_DIR=target/models RUSTFLAGS="--cfg loom" $(CARGO) test --quiet -p virtio-backend -p virtio-mmio --lib models::

catalogue: deps ## Run all tests of cargo, and make docs/security.md and docs/conformance.md of what they tell
	$(CARGO) run --quiet -p catalogue

miri: ## Run what Miri can, from addresses to rings; needs the nightly compiler with miri and rust-src
	MIRIFLAGS="-Zmiri-disable-isolation" $(CARGO) +$(NIGHTLY) miri test --quiet -p io-bus -p guest-memory -p virtio-backend \
		-p ioreq -p virtio-mmio --lib -- $(addprefix --skip ,$(NOT_MIRI))
	MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-many-seeds=0..$(SEEDS)" $(CARGO) +$(NIGHTLY) miri test --quiet \
		-p virtio-backend --lib handover

tsan: ## Run the tests in process under ThreadSanitizer; needs the nightly compiler with rust-src
	RUST_BACKTRACE=0 CARGO_TARGET_DIR=target/tsan \
		TSAN_OPTIONS="suppressions=$(CURDIR)/crates/testkit/thread-sanitizer.supp report_thread_leaks=0" \
		RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" $(CARGO) +$(NIGHTLY) test --quiet --no-fail-fast \
		-Zbuild-std --target $(HOST) --workspace $(addprefix --exclude ,$(NOT_TSAN)) --lib --tests

lab: deps ## Run the lab's cases only; one or some with CASE="NAME..."
	@tests/lab/run $(CASE)

vmm: deps ## Run only the cases of our vhost-user daemons under QEMU and others, without Xen
	@tests/lab/vmm/run $(CASE)

bench: deps ## Measure what it costs on this machine, beside other programs; one part with CASE=peers
	$(CARGO) build --release --quiet -p xen-virtio
	$(CARGO) run --release --quiet -p xen-virtio-bench -- $(CASE)

bench-lab: deps ## Count what one guest I/O costs, beside other backends and revision BASE (the last release); one part with CASE=disk
	@BASE="$(BASE)" tests/lab/bench $(CASE)

fuzz: deps ## Search for inputs that something does not cope with, TIME seconds in all; one target with TARGET=rings
	@tests/fuzz/search $(TIME) $(TARGET)

soak: deps ## Search for what the tests do not find: SECONDS of `make fuzz`, KILLS of a disk, STATES of disks after power cuts
	@tests/fuzz/search $(SECONDS)
	$(CARGO) run --profile fuzz --quiet -p kills -- --kills $(KILLS) --seed $(SEED)
	@STATES=$(STATES) SEED=$(SEED) ROUNDS=100 LIMIT=86400 tests/lab/vmm/run power-cut
	@CYCLES=$(CYCLES) WORKER_KILLS=$(WORKER_KILLS) HOSTILE_DEVICES=5 SEED=$(SEED) LIMIT=86400 \
		tests/lab/run cycles worker-kill hostile-guest

build: ## Build the program for this machine
	$(CARGO) build --release -p xen-virtio

install: ## Install what was built under PREFIX (/usr/local); DESTDIR for packagers
	@test -x target/release/xen-virtio || { echo "There is no program yet: run make build first, not as root"; exit 1; }
	install -D -m 755 target/release/xen-virtio $(DESTDIR)$(PREFIX)/sbin/xen-virtio
	for kind in $(KINDS); do ln -sf xen-virtio $(DESTDIR)$(PREFIX)/sbin/virtio-$$kind; done
	install -d $(DESTDIR)/etc/xen-virtio/guests $(DESTDIR)$(EXAMPLES)
	install -m 644 guest-config/guests/example.toml guest-config/virtio-disks.cfg guest-config/virtio-devices.cfg \
		$(DESTDIR)$(EXAMPLES)
	install -m 644 guest-config/static/example.toml $(DESTDIR)$(EXAMPLES)/static.toml
	install -d $(DESTDIR)$(EXAMPLES)/vhost-user $(DESTDIR)$(EXAMPLES)/driver-domain
	install -m 644 guest-config/driver-domain/* $(DESTDIR)$(EXAMPLES)/driver-domain
	for file in guest-config/vhost-user/*; do \
		sed 's,/usr/local/sbin/,$(PREFIX)/sbin/,' "$$file" >"$(DESTDIR)$(EXAMPLES)/vhost-user/$${file##*/}"; done
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system
	sed 's,/usr/local/sbin/,$(PREFIX)/sbin/,' guest-config/xen-virtio.service \
		>$(DESTDIR)$(PREFIX)/lib/systemd/system/xen-virtio.service

deps: ## Install what the others need and this machine lacks (apt-get, sudo)
	@tests/lab/deps

clean: ## Remove what was built; downloads stay in the cache
	$(CARGO) clean
