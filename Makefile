# make demo: the whole service on a simulated plant.   make test: the tests, against real servers.
# make check: ruff, mypy, the walls, unused dependencies.   make bench: the benchmarks.
# Each target makes the virtual environment and installs what it needs first; a second run is quick.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# A Sparkplug edge node by somebody else, for the tests; apart from the packages of pm, since it needs an older paho-mqtt.
EDGE := pysparkplug==0.6.1 paho-mqtt==1.6.1
SERVERS := mosquitto influxdb nginx-light chromium postgresql prometheus
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: demo test check bench servers clean

demo: $(VENV)/.installed
	$(BIN)/pm demo

test: $(VENV)/.installed-dev servers
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg
	$(BIN)/deptry .

bench: $(VENV)/.installed-dev servers
	$(BIN)/python -m benchmarks

$(BIN)/python:
	@echo "Making the virtual environment $(VENV)"
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
	  || { echo "Installing Debian's python3-venv"; $(SUDO) apt-get install -y -q python3-venv >/dev/null; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing pm and its packages into $(VENV) (torch is large; the first time takes minutes)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for development into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@$(BIN)/python -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target $(VENV)/edge $(EDGE)
	@touch $@

# The tests start these servers themselves, on free loopback ports. Where they cannot be installed (no Debian, no root)
# the tests that need them say so and skip; with CI=true a missing one is a failure.
servers:
	@missing=''; for p in $(SERVERS); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then \
	  if command -v apt-get >/dev/null; then \
	    echo "Installing Debian's packages for the tests:$$missing"; \
	    { $(SUDO) apt-get update -q && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; } >/dev/null 2>&1 \
	      || echo "Could not install:$$missing; the tests that need them will say so"; \
	  else echo "Not a Debian machine; missing:$$missing; the tests that need them will say so"; fi; fi

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache
