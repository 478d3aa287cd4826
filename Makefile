# make demo     sets up and trains the small compression model with three optimizers
# make test     sets up and runs the core suite
# make lint     ruff, mypy and clang-format
# make measure  takes the results of a CPU in bench/results/ anew
# make soak     what takes longer: property tests with thousands of random examples
#
# Everything lives in .venv. TORCH=torch==2.11.0 takes another torch, PYTHON=python3.12 another Python.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TRITON := triton==3.6.0
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready-with-$(subst /,_,$(TORCH))
INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile \
	--constraint .ci/constraints.txt
CXX_SOURCES := $(shell find csrc tests/native -name '*.cpp' -o -name '*.cu' -o -name '*.h')
BUILD_INPUTS := pyproject.toml setup.py CMakeLists.txt .ci/constraints.txt $(shell find csrc -type f)

.PHONY: setup demo test lint format measure soak clean

setup: $(READY)

# torch first and by name, the build without isolation: an isolated build would fetch a second torch.
# Builds with CUDA bring the Triton that they need; others bring none, and get the lowest we support.
# Pip would compile to bytecode on one core, in half of its time; some files are of other Pythons.
$(READY): $(BUILD_INPUTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "soap_fast needs Python >= 3.11: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "no virtual environment: on Debian, apt install python3-venv" >&2; exit 1; }
	$(INSTALL) $(TORCH) numpy setuptools wheel cmake ninja pybind11
	$(BIN)/python -c 'import triton' 2>/dev/null || $(INSTALL) "$(TRITON); sys_platform == 'linux'"
	$(INSTALL) --no-build-isolation --editable ".[bench,lint,test]"
	$(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
	rm -f $(VENV)/ready-with-* && touch $@

demo: setup
	$(BIN)/python -m bench.lic demo

# What measures time runs by itself. Everything else runs two at a time, a thread each: more would
# wait for each other. Each of the two takes whole files where it can, and their fixtures with them.
ALONE := tests/bench/test_bench_roofs.py tests/bench/test_bench_turns.py tests/test_host_side.py

# Processes share what one of them has compiled to bytecode, whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE :=
test: setup
	$(BIN)/python -m pytest $(ALONE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(addprefix --ignore=,$(ALONE))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

measure: setup
	$(MAKE) --keep-going -f bench/Makefile PYTHON=$(BIN)/python

soak: setup
	SOAP_FAST_EXAMPLES=5000 SOAP_FAST_KILLS=100 $(BIN)/python -m pytest tests/test_oracle.py tests/test_modes.py \
		tests/test_plan.py tests/test_eigh.py tests/test_refresh.py \
		tests/test_refresh_cholesky.py tests/test_fused.py tests/ops tests/test_twins.py \
		tests/contract/test_compiled.py tests/test_self_check_problem.py tests/test_zero_rows.py \
		tests/test_zero_gradients.py tests/test_noise_floor.py tests/faults tests/jit tests/cost

# runs/ stays: it holds what was trained.
clean:
	rm -rf $(VENV) build dist *.egg-info soap_fast/*.so
