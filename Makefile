# make inspect   the main job on FLUX.2-klein-4B's real graph
# make test      the default tests          make test-slow   the rest but test-browser (wheel, Inductor matrix, full-size graphs)
# make lint      ruff and mypy              make bench       matching against its peers
# make xla       torch-xla in .venv-xla     make test-xla    what XLA makes of models (7.2 GB, some minutes)
#                                           make test-torch29   the core's tests with the torch 2.9 that is there
# make test-quantised   linear layers quantised by torchao
# make verify    kernels against float64    make bench-kernels   modelled kernel times (NKILIB=checkout to compare)
# make docs      the pages of docs/ in docs/_build/html
# make docs-reference   their parts that come from the code     make sessions   the terminal sessions in README.md and docs/
# make map       the picture in README.md
# make test-browser   the page in Chromium (Debian: apt-get as root; npm)
# make coverage   docs/coverage.md: what is found in 90 other models (some minutes)
# make fuzz   100,000 small programs respelled at random, and close-but-wrong ones (half an hour of one core)
# make mutate   each guard of the passes and the matcher disabled in turn: which test fails without it (40 minutes of two cores)
# make bench-plans   whole models on the CPU under each policy (half an hour)
PYTHON ?= python3
VENV ?= .venv
VENV_XLA ?= .venv-xla
WORKERS ?= 2
BIN := $(VENV)/bin
MODEL ?= flux2-klein-4b
TORCH29 ?= tests/passes tests/dynamo tests/neuron tests/rewrite/test_joined_weights.py tests/graph/test_view.py tests/models/test_capture.py tests/models/test_workload.py tests/provider/test_neuron_device.py tests/test_flux.py tests/test_reasons.py

.PHONY: inspect docs docs-reference sessions map test test-browser test-slow test-quantised xla test-xla test-torch29 lint schema bench bench-kernels bench-plans coverage fuzz mutate verify clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fluxrewrite needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[diffusers,test]'
	touch $@

inspect: $(VENV)/.installed
	$(BIN)/fluxrewrite inspect $(MODEL)

# One thread a process: two processes have the two cores.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not slow' -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n $(WORKERS) --dist loadfile --ignore tests/browser

# torchao goes into a folder of its own: with it installed, importing diffusers prints warnings.
build/quantised: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt --target $@ torchao

test-quantised: build/quantised
	PYTHONPATH=build/quantised OMP_NUM_THREADS=1 $(BIN)/pytest tests/life/test_quantised.py

$(VENV_XLA)/.installed: pyproject.toml constraints-xla.txt
	$(PYTHON) -m venv $(VENV_XLA)
	$(VENV_XLA)/bin/python -m pip install --quiet --disable-pip-version-check --no-cache-dir -c constraints-xla.txt -e '.[diffusers,xla]' hypothesis pytest
	touch $@

xla: $(VENV_XLA)/.installed

test-xla: $(VENV_XLA)/.installed
	$(VENV_XLA)/bin/pytest tests/xla

test-torch29: $(VENV_XLA)/.installed
	$(VENV_XLA)/bin/pytest -m 'not slow' $(TORCH29)

# mypy cannot follow the mapping of passes/ and kernels/ in the source tree: it checks an installed copy from another folder.
lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf build
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p fluxrewrite

schema: $(VENV)/.installed
	$(BIN)/python -c 'from fluxrewrite.report.model import schema_text; print(schema_text(), end="")' > fluxrewrite/report/schema.json

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -W --keep-going --quiet --fresh-env -b html docs docs/_build/html
	! grep -rnE '<(script|img|iframe)[^>]* src="(https?:)?//|<link[^>]* href="(https?:)?//|@import|url\(.?(https?:)?//' docs/_build/html --include=*.html --include=*.css

docs-reference: $(VENV)/.installed
	$(BIN)/python tools/docs_reference.py

sessions: $(VENV)/.installed
	$(BIN)/python tools/docs_sessions.py

map: $(VENV)/.installed
	$(BIN)/fluxrewrite inspect flux2-klein-4b --format svg -o docs/boundary-map.svg

# Chromium, its driver and npm are Debian's: installed where they are missing, which needs root; lists of packages may be missing too.
DEBIAN = sh -c 'apt-get install -qq -y --no-install-recommends "$$@" || { apt-get update -qq && apt-get install -qq -y --no-install-recommends "$$@"; }' --

tests/browser/node_modules/axe-core/axe.min.js: tests/browser/package-lock.json
	command -v npm > /dev/null || $(DEBIAN) npm
	npm ci --prefix tests/browser --no-audit --no-fund
	touch $@

$(VENV)/.browser: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser,viz]'
	touch $@

test-browser: $(VENV)/.browser tests/browser/node_modules/axe-core/axe.min.js
	command -v chromium > /dev/null && command -v chromedriver > /dev/null || $(DEBIAN) chromium chromium-driver
	$(BIN)/pytest tests/browser

bench: $(VENV)/.installed
	$(BIN)/python tools/bench_matching.py

bench-kernels: $(VENV)/.installed
	$(BIN)/python tools/bench_kernels.py $(if $(NKILIB),--nkilib $(NKILIB))

bench-plans: $(VENV)/.installed
	$(BIN)/python tools/bench_plans.py

coverage: $(VENV)/.installed
	$(BIN)/python tools/coverage.py --format markdown

fuzz: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/fuzz.py --jobs $(WORKERS)

mutate: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python tools/mutate_guards.py --jobs $(WORKERS)

verify: $(VENV)/.installed
	OPENBLAS_NUM_THREADS=1 $(BIN)/fluxrewrite verify --kernels

clean:
	rm -rf build dist docs/_build *.egg-info $(VENV) $(VENV_XLA)
