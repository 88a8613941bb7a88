# Pretraining and fine-tuning run in .venv; tests, lint and docs run in .venv-dev. Each is created with $(PYTHON) when it is needed, and
# updated when pyproject.toml, constraints.txt or requirements/ have changed. There are two because the built-in corpus consists of what
# is installed, and because some packages that the tests need print lines of their own.

PYTHON ?= python3.11
ARGS ?=
JOBS ?= 2
INSTALLED := .venv/installed
INSTALLED_DEV := .venv-dev/installed

.PHONY: help pretrain glue bench test test-slow lint docs clean

help:
	@echo "make pretrain    pretrain a small Luna on this computer's CPU: configs/pretrain/demo.yaml;"
	@echo "                 ARGS=\"--key value ...\" overrides its keys"
	@echo "make glue        fine-tune that model on a small task: configs/glue/demo.yaml. For GLUE itself:"
	@echo "                 ARGS=\"--tasks cola,rte --data hub --output_dir runs/glue\" (or --data FOLDER)"
	@echo "make bench       speed and memory of Luna, RoBERTa and ModernBERT on this computer, in about four minutes;"
	@echo "                 ARGS=\"--help\" lists what else benchmarks/speed/speed.py measures"
	@echo "make test        the tests, in JOBS=2 processes"
	@echo "make test-slow   those that take more than a few seconds each"
	@echo "make lint        ruff, mypy, and the floors of the folders (import-linter)"
	@echo "make docs        build the documentation as a site, in site/"
	@echo "make clean       remove .venv, .venv-dev and all caches; data/ and runs/ stay"
	@echo ""
	@echo "The first command creates its environment with $(PYTHON). For another: make PYTHON=..., with 3.11, 3.12 or 3.13."

# One thread for each core, unless the caller has set a number.
pretrain bench: export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
pretrain: $(INSTALLED)
	@.venv/bin/accelerate launch --quiet --config_file configs/accelerate/cpu.yaml pretrain/run_mlm.py configs/pretrain/demo.yaml $(ARGS)

bench: $(INSTALLED)
	@.venv/bin/python benchmarks/speed/speed.py $(or $(ARGS),--quick)

glue: export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
glue: $(INSTALLED)
	@test -d runs/demo/model || { echo "error: there is no runs/demo/model yet: run \`make pretrain\` first" >&2; exit 1; }
	@.venv/bin/python finetune_glue/demo_task.py data/demo-task
	@.venv/bin/python finetune_glue/run_glue.py configs/glue/demo.yaml $(ARGS)

# Two processes with one thread each. The tests of a file stay in one process, because they share fixtures.
test test-slow: export OMP_NUM_THREADS := 1
test: $(INSTALLED_DEV)
	@.venv-dev/bin/python -m pytest -q -n $(JOBS) --dist loadscope -m "not slow" $(ARGS)

test-slow: $(INSTALLED_DEV)
	@.venv-dev/bin/python -m pytest -q -n $(JOBS) --dist loadscope -m slow $(ARGS)

lint: $(INSTALLED_DEV)
	@.venv-dev/bin/ruff check .
	@.venv-dev/bin/ruff format --check .
	@.venv-dev/bin/mypy
	@report=$$(.venv-dev/bin/lint-imports --no-cache --no-logo 2>&1) || { echo "$$report"; exit 1; }; echo "$$report" | tail -n 1

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(INSTALLED_DEV)
	@.venv-dev/bin/mkdocs build --strict
	@echo "The documentation is in site/index.html."

$(INSTALLED): REQUIREMENTS := -r requirements/pretrain.txt -r requirements/glue.txt
$(INSTALLED_DEV): REQUIREMENTS := -r requirements/dev.txt
$(INSTALLED) $(INSTALLED_DEV): pyproject.toml constraints.txt $(wildcard requirements/*.txt)
	@version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version=none; \
	case "$$version" in \
	3.11|3.12|3.13) ;; \
	none) echo "error: $(PYTHON) cannot be run. Install Python 3.11, 3.12 or 3.13, or name one: make PYTHON=/path/to/python" >&2; exit 1 ;; \
	*) echo "error: $(PYTHON) is Python $$version, but 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python" >&2; exit 1 ;; \
	esac
	@echo "Installing PyTorch, Transformers and the rest into $(@D). The first time takes some minutes ..."
	@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e . $(REQUIREMENTS)
	@touch $@

clean:
	rm -rf .venv .venv-dev .mypy_cache .pytest_cache .ruff_cache build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
