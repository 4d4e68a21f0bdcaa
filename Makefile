# Every target sets itself up on a machine that has Python 3.11 or newer and nothing else; the second time is quick.
# Versions come from constraints.txt.

BASE_PYTHON := $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || echo python3)
READY := .venv/.ready
BENCH_READY := .venv-bench/.ready
OLDEST := 5.20.0
NEWEST := 5.24.0
VERSIONS := .venv-oldest/.ready .venv-newest/.ready
VERSION_TESTS := tests/engine/test_parity.py tests/engine/test_budget.py tests/engine/test_kv_cache.py
PURE_TESTS := tests/models tests/machine tests/planner tests/test_paths.py tests/test_sizes.py
PURE := src/outsize/models/*,src/outsize/machine/*,src/outsize/planner/*,src/outsize/paths.py,src/outsize/sizes.py
KERNELS := $(wildcard src/outsize/kernels/cpu/c/*) setup.py src/outsize/kernels/cpu/build.py
SANITIZED := .venv/sanitized.so

.PHONY: demo test test-versions test-triton test-web check sanitize bench gpu-check clean

demo: $(READY)  ## plan the bundled model on a machine too small for it, then run it there
	.venv/bin/outsize demo

# Coverage makes tests twice as slow, so it is measured where it is asked for alone: the pure rooms, by their own tests.
test: $(READY)  ## all tests; every line of models/, machine/ and planner/ is covered by their own
	.venv/bin/python -m pytest --numprocesses auto --dist loadgroup --cov --cov-report= $(PURE_TESTS)
	.venv/bin/coverage report --include='$(PURE)' --fail-under=100 --show-missing --skip-covered
	.venv/bin/python -m pytest --numprocesses auto --dist loadgroup $(PURE_TESTS:%=--ignore=%)

test-versions: $(VERSIONS)  ## what depends on transformers' internals, with the oldest and the newest supported version
	for version in oldest newest; do \
		.venv-$$version/bin/python -m pytest --numprocesses auto --dist loadgroup $(VERSION_TESTS) || exit; \
	done

# Apart, because whatever imports torch imports Triton too where it is, 70 MiB that a machine without GPU has no use for.
test-triton: .venv-triton/.ready  ## the GPU kernels, in Triton's interpreter and compiler
	.venv-triton/bin/python -m pytest --numprocesses auto tests/kernels/test_triton_kernels.py

test-web: .venv-web/.ready  ## the page in a real browser; needs Debian's chromium
	.venv-web/bin/python -m pytest -m web tests/web

check: $(READY) sanitize  ## format, lint, types, floors, and the kernels under sanitizers
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

sanitize: $(READY)  ## the tests of the kernels, with every read, write and overflow checked
	@if command -v $${CC:-cc} >/dev/null; then $(MAKE) --no-print-directory sanitized-tests; \
	else echo 'sanitize: skipped, for there is no C compiler here'; fi

.PHONY: sanitized-tests
sanitized-tests: $(SANITIZED)
	OUTSIZE_KERNELS_LIBRARY=$(abspath $(SANITIZED)) ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD="$$($${CC:-cc} -print-file-name=libasan.so) $$($${CC:-cc} -print-file-name=libubsan.so)" \
	.venv/bin/python -m pytest -q --capture=sys -p no:cacheprovider tests/kernels/test_dispatch.py tests/kernels/test_float_kernels.py tests/kernels/test_grouped.py tests/kernels/test_bf12.py tests/kernels/test_rmsnorm.py

$(SANITIZED): $(KERNELS) | $(READY)
	.venv/bin/python -m outsize.kernels.cpu.build --sanitize --out $@

bench: $(BENCH_READY)  ## spill against accelerate and llama.cpp, the small variant
	.venv-bench/bin/python bench/spill.py --small

gpu-check:  ## the device checks, with the torch that is there: installs nothing
	PYTHONPATH=src $${PYTHON:-python3} bench/gpu_check.py

clean:  ## forget the environments
	rm -rf .venv .venv-bench .venv-oldest .venv-newest .venv-triton .venv-web

$(READY): pyproject.toml constraints.txt $(KERNELS)
	$(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Environments with the packages of .venv, and another transformers, or Triton, before them on the path.
BORROW = $(BASE_PYTHON) -m venv --without-pip $(@D) && \
	echo 'import site; site.addsitedir("'$$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')'")' \
		> $$($(@D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/packages_of_venv.pth
INSTALL = .venv/bin/python -m pip --python $(@D)/bin/python install --quiet --no-deps

$(VERSIONS): .venv-%/.ready: Makefile $(READY)
	$(BORROW)
	$(INSTALL) transformers==$(if $(filter oldest,$*),$(OLDEST),$(NEWEST))
	touch $@

.venv-triton/.ready: Makefile constraints.txt $(READY)
	$(BORROW)
	$(INSTALL) --constraint constraints.txt triton
	touch $@

.venv-web/.ready: Makefile constraints.txt $(READY)
	$(BORROW)
	$(INSTALL) --constraint constraints.txt playwright axe-playwright-python
	touch $@

# Without AMX: llama.cpp's kernels for it crash (ggml-org/llama.cpp#20824).
$(BENCH_READY): pyproject.toml constraints.txt bench/requirements.txt $(KERNELS)
	$(BASE_PYTHON) -m venv .venv-bench
	CMAKE_ARGS='-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__' \
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --requirement bench/requirements.txt --editable .
	touch $@
