# Everything a newcomer needs: make demo, make test, make bench, make lint.
PYTHON := $(shell for p in /usr/bin/python3 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
RUN := $(VENV)/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BOTH := $(patsubst %,tests/netns/test_%.py,main_job services services_publish policy_boot) # on both packet paths
APT := gcc libc6-dev musl-tools make python3-dev python3-venv libnftables1 nftables libnghttp2-dev iproute2 clang libbpf-dev e2fsprogs

.PHONY: demo test bench lint build system clean

demo: build
	$(SUDO) $(RUN)/python docs/examples/demo.py

test: build $(VENV)/.dev $(VENV)/.peers
	$(SUDO) $(RUN)/python -m pytest -m "not slow" $(ARGS)
	$(if $(ARGS),,$(SUDO) $(RUN)/python -m pytest -m "not slow" --datapath kernel $(BOTH))

bench: build $(VENV)/.dev $(VENV)/.peers
	$(SUDO) $(RUN)/python -m benchmarks $(ARGS)

lint: $(VENV)/.dev
	$(RUN)/ruff check . && $(RUN)/ruff format --check . && $(RUN)/mypy && $(RUN)/lint-imports

build: $(VENV)/.built

# The system's packages, once; a machine that is not Debian's says what it needs.
$(VENV)/.system: Makefile
	@mkdir -p $(VENV)
	tools/apt-install $(APT)
	@touch $@

$(VENV)/.built: $(VENV)/.system pyproject.toml setup.py $(shell find csrc -type f)
	@[ -n "$(PYTHON)" ] || { echo "netplane needs Python 3.11 or later" >&2; exit 1; }
	[ -x $(RUN)/python ] || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -e .
	@ls netplane/_bpf/*.o >/dev/null 2>&1 || echo "clang or libbpf is missing: everything but the fast path works (see netplane doctor)"
	@ls storageplane/rpc/_*.so >/dev/null 2>&1 || echo "nghttp2 (libnghttp2-dev) is missing: everything but serving CSI works (see storageplane doctor)"
	@touch $@

$(VENV)/.dev: $(VENV)/.built
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Real peers for tests and benchmarks.
$(VENV)/.peers: $(VENV)/.system
	tools/apt-install containernetworking-plugins iperf3 iputils-ping bind9-dnsutils knot-dnsutils conntrack bpftool dnsperf iptables podman xfsprogs btrfs-progs fio
	-tools/apt-install libclang-rt-$$(clang -dumpversion | cut -d. -f1)-dev # elsewhere its test says what it needs
	tools/client-peers $(VENV)/peers
	tools/csi-peers $(VENV)/peers
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info netplane/_bin netplane/_bpf netplane/kernel/_*.so netplane/dns/_*.so storageplane/rpc/_*.so
