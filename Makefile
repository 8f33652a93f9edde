# The two commands of the README. Each sets up all it needs in .venv first.
.PHONY: demo test quick test-capture lint
.DELETE_ON_ERROR:
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
export VIDEO ?= demo:?seconds=10&seed=1
export RESULTS ?= results

demo: $(VENV)/.base
	@case "$$VIDEO" in demo:*) \
		echo "The demo recording is rendered once, which takes about half a minute; then it is processed.";; esac
	$(BIN)/polypstream process --output "$$RESULTS" --masks --overwrite -- "$$VIDEO"

# Three test processes for two cores: tests wait a part of the time, for processes and clocks. Those that measure delays
# wait most of the time, and use a quarter of a core each, so five of them run.
PROCESSES := $(shell expr \( 3 \* $$(getconf _NPROCESSORS_ONLN) + 1 \) / 2)
WAITING := $(shell expr 5 \* $$(getconf _NPROCESSORS_ONLN) / 2)
SPREAD := -n $(PROCESSES) --dist loadfile --no-loadscope-reorder
# Hundreds of processes are started. Each would compile our modules again if Python did not keep them compiled.
test quick: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.dev
	$(BIN)/python -m pytest $(SPREAD) -m "not realtime"
	$(BIN)/python -m pytest -n $(WAITING) --dist worksteal -m realtime

# Something of every folder, without what is slow; pyproject.toml has what each marker means.
quick: $(VENV)/.dev
	$(BIN)/python -m pytest $(SPREAD) -m "not (slow or browser or cluster or realtime)"

# Capture devices, by a real driver in an emulated machine; takes minutes, and is not a part of `test`.
test-capture: $(VENV)/.dev
	tests/capture/boot.sh

# mypy and import-linter do not follow an editable install whose folders have other names than its packages. They get
# a copy of the sources in which the folders are named as installed.
TREE := build/tree
lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf $(TREE) && mkdir -p $(TREE) && cp -Rp stream $(TREE)/polypstream && cp -Rp export models $(TREE)/polypstream
	MYPYPATH=$(TREE) $(BIN)/mypy
	cd $(TREE) && $(CURDIR)/$(BIN)/lint-imports $(CURDIR)/pyproject.toml --no-cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# OpenCV with windows needs libraries of a desktop. Where they are missing, OpenCV without windows takes its place. An
# earlier one is removed first: both packages own the same files.
define WITH_OPENCV
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
		echo "OpenCV cannot be loaded here: it needs libGL and libxcb. opencv-python-headless takes its place, in $(VENV)."; \
		echo "Everything but \`polypstream live --window\` works with it."; \
		$(BIN)/python -m pip uninstall --quiet --yes opencv-python opencv-python-headless && \
		$(BIN)/python -m pip install --quiet opencv-python-headless -c constraints.txt && $(BIN)/python -c 'import cv2'; }
endef

SAY_INSTALL := echo "Everything that is needed is installed into $(VENV). This takes some minutes, once."

$(VENV)/.base: pyproject.toml constraints.txt | $(BIN)/python
	@$(SAY_INSTALL)
	$(BIN)/python -m pip install --quiet -e . -c constraints.txt
	$(WITH_OPENCV)
	touch $@

# Public readers of annotation formats and an S3 server; tests that want them are skipped without.
$(VENV)/.readers: tests/readers.txt
	$(PYTHON) -m venv $(VENV)/readers
	$(VENV)/readers/bin/python -m pip install --quiet -r tests/readers.txt
	touch $@

# Public segmentation networks, exported once for the tests of `wrap`, which are skipped without.
$(VENV)/.networks: tests/networks.txt tests/export/networks.py | $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(VENV)/networks -r tests/networks.txt
	mkdir -p $(VENV)/networks/exported
	PYTHONPATH=$(VENV)/networks $(BIN)/python tests/export/networks.py $(VENV)/networks/exported
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@$(SAY_INSTALL)
	$(BIN)/python -m pip install --quiet -e '.[train,dev,dicom,cluster,s3]' -c constraints.txt
	$(WITH_OPENCV)
	touch $@
