# Needed: Python 3.10 or newer with venv, a C++ compiler, make. Everything else comes from PyPI.
# Any target sets up what it needs in .venv on the first call; later calls reuse it.
#
#   make demo             the tour: convert the bundled model, run it, talk to it
#   make check            while working and before a commit: lint, types and the fast tests
#   make test             all tests
#   make lint, types      ruff and the form of Python and C++; mypy, strictly
#   make format           brings Python and C++ into that form
#   make fast             the tests that are not in tests/slow_tests.txt
#
#   make fuzz             everything that reads a stranger's bytes (fuzz-python, fuzz-native)
#   make sanitize         our kernels under the address and undefined-behaviour sanitizers
#   make arm-check        our kernels for arm64, run by qemu
#   make reference-check  fresh random checkpoints against torch and transformers
#   make wheel            dist/*.whl
#   make fresh-check      the wheel, in an empty environment and folder
#   make wheelhouse       dist/wheelhouse: all wheels for an installation without compiler and network
#   make wheelhouse-check it installs and runs, on this processor and on older ones (qemu-user)
#   make clean            removes what these made
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# what clang-format sees
CXX_SOURCES := $(wildcard $(foreach folder,native/src native/src/compensation native/src/kernels tests/native tests/native/no_llama \
    tests/fuzz/native benchmarks,$(folder)/*.cpp $(folder)/*.h))

PACKAGES := commands convert measure models native runtime serve store terminal

# what an editable install compiles or records: it uses Python sources in place, but lists the modules
MODULES := $(sort $(wildcard *.py $(foreach package,$(PACKAGES),$(package)/*.py $(package)/*/*.py $(package)/*/*/*.py)))
$(shell mkdir -p build && echo '$(MODULES)' | cmp -s - build/modules || echo '$(MODULES)' >build/modules)
BUILD_INPUTS := pyproject.toml CMakeLists.txt build/modules $(wildcard native/src/*.cpp native/src/*.h native/src/*/*)

.PHONY: demo check test fast lint format types fuzz fuzz-python fuzz-native sanitize arm-check reference-check wheel fresh-check wheelhouse wheelhouse-check clean

demo: $(VENV)/.installed
	$(BIN)/infer-os demo

# the tests on one core, lint and types on another
check: $(VENV)/.installed-lint
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target fast lint types

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

fast: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m "not slow"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"

$(VENV)/.installed: $(BIN)/python $(BUILD_INPUTS)
	@echo "Installing into $(VENV); the first time, pip compiles llama.cpp (several minutes)."
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

# the extras beside the installation, which another editable one would compile again
$(VENV)/.installed-test: $(VENV)/.installed
$(VENV)/.installed-lint: $(VENV)/.installed-test
$(VENV)/.installed-test $(VENV)/.installed-lint: $(VENV)/.installed-%:
	$(BIN)/python packaging/requirements_of.py $* >build/$*.txt
	$(BIN)/python -m pip install --quiet --requirement build/$*.txt
	touch $@

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

# all that lint checks the form of
format: $(VENV)/.installed-lint
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# mypy sees the folders under the names that they are installed with
types: $(VENV)/.installed-lint
	rm -rf build/types && mkdir -p build/types/infer_os
	ln -s $(wildcard $(CURDIR)/*.py) $(CURDIR)/py.typed \
	    $(addprefix $(CURDIR)/,$(PACKAGES)) build/types/infer_os/
	MYPYPATH=build/types $(BIN)/mypy -p infer_os

# The kernels alone, under the address and undefined-behaviour sanitizers, and the thread sanitizer.
# cmake is the one of PyPI.
SITE = $(shell $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")
sanitize: $(VENV)/.installed-test
	test -x $(BIN)/cmake || $(BIN)/python -m pip install --quiet "cmake>=3.21,<5"
	set -e; for kind in address,undefined thread; do \
	    $(BIN)/cmake -S . -B build/sanitize-$$kind -DCMAKE_BUILD_TYPE=Debug \
	        -DINFEROS_KERNELS_CHECK=ON -DCMAKE_PREFIX_PATH=$(SITE) \
	        -DCMAKE_BUILD_RPATH=$(SITE)/llama_cpp/lib \
	        -DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=$$kind -fno-sanitize-recover=all"; \
	    $(BIN)/cmake --build build/sanitize-$$kind --target kernels_check; \
	    LD_LIBRARY_PATH=$(SITE)/llama_cpp/lib build/sanitize-$$kind/kernels_check; \
	done

# Coverage-guided fuzzing of everything that reads a stranger's bytes, SECONDS for each target; what
# runs find worth keeping stays in build/fuzz. Python needs atheris, which pip installs; C++ needs
# clang with libFuzzer (Debian: clang, libclang-rt-14-dev).
SECONDS ?= 60
TARGETS ?=
FUZZ_CXX ?= clang++
fuzz: fuzz-python fuzz-native

fuzz-python: $(VENV)/.installed-test
	$(BIN)/python -c "import atheris" 2>/dev/null || $(BIN)/python -m pip install --quiet "atheris>=2.3,<4"
	$(BIN)/python tests/fuzz/run.py $(TARGETS) --seconds $(SECONDS)

fuzz-native: $(VENV)/.installed-test
	@command -v $(FUZZ_CXX) >/dev/null || { echo "fuzz-native needs clang and its libFuzzer"; exit 2; }
	test -x $(BIN)/cmake || $(BIN)/python -m pip install --quiet "cmake>=3.21,<5"
	$(BIN)/cmake -S . -B build/fuzz-native -DCMAKE_BUILD_TYPE=Debug -DINFEROS_FUZZ=ON \
	    -DCMAKE_C_COMPILER=$(subst clang++,clang,$(FUZZ_CXX)) -DCMAKE_CXX_COMPILER=$(FUZZ_CXX) \
	    -DCMAKE_PREFIX_PATH=$(SITE) -DCMAKE_BUILD_RPATH=$(SITE)/llama_cpp/lib
	$(BIN)/cmake --build build/fuzz-native --target fuzzers
	tests/fuzz/native.sh build/fuzz-native $(SECONDS)

# The kernels for arm64, compiled on another processor and run by qemu: on one with all instructions,
# once more with sanitizers, and on one without dot products. The rest of native/src is compiled and
# linked, without llama.cpp. Debian's packages: g++-aarch64-linux-gnu, qemu-user.
ARM      := aarch64-linux-gnu
ARM_RUN  := qemu-aarch64 -L /usr/$(ARM)
ARM_CMAKE = $(BIN)/cmake -S . -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=$(ARM)-gcc -DCMAKE_CXX_COMPILER=$(ARM)-g++ -DINFEROS_KERNELS_CHECK=ON \
    -Dllama_DIR=$(CURDIR)/tests/native/no_llama -DINFEROS_LLAMA_INCLUDE=$(SITE)/include
arm-check: $(VENV)/.installed-test
	@command -v $(ARM)-g++ >/dev/null || { echo "arm-check needs the package g++-$(ARM)"; exit 2; }
	@command -v qemu-aarch64 >/dev/null || { echo "arm-check needs the package qemu-user"; exit 2; }
	test -x $(BIN)/cmake || $(BIN)/python -m pip install --quiet "cmake>=3.21,<5"
	$(ARM_CMAKE) -B build/arm
	$(BIN)/cmake --build build/arm --target inferos kernels_check
	$(ARM_RUN) -cpu max build/arm/kernels_check neon
	$(ARM_RUN) -cpu cortex-a53 build/arm/kernels_check none
	$(ARM_CMAKE) -B build/arm-sanitize -DCMAKE_BUILD_TYPE=Debug \
	    -DCMAKE_CXX_FLAGS="-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all"
	$(BIN)/cmake --build build/arm-sanitize --target kernels_check
	ASAN_OPTIONS=detect_leaks=0 $(ARM_RUN) -cpu max build/arm-sanitize/kernels_check neon

# Compares fresh random checkpoints with torch and transformers, in an environment of its own.
reference-check: $(VENV)/.installed-test
	test -x $(VENV)-reference/bin/python || $(PYTHON) -m venv $(VENV)-reference
	$(VENV)-reference/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(VENV)-reference/bin/python -m pip install --quiet "torch==2.13.0" "transformers>=5,<6" "peft<1" \
	    --editable ".[test]"
	$(VENV)-reference/bin/python tests/reference/make_references.py check
	$(VENV)-reference/bin/python tests/reference/make_beams.py check
	$(VENV)-reference/bin/python tests/reference/make_embeddings.py check
	$(VENV)-reference/bin/python tests/reference/make_adapters.py check
	$(VENV)-reference/bin/python tests/reference/check_templates.py check
	$(VENV)-reference/bin/python -m pytest -q tests/convert/test_torch_file.py -k torch_reads

wheel: $(VENV)/.installed-lint
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist .

# The wheel in an empty environment and folder, without this checkout in sight.
fresh-check: wheel
	tests/fresh_install.sh dist/*.whl

# The first environment has the tools, the second call finds what the first has compiled.
wheelhouse:
	test -x $(VENV)-wheelhouse/bin/python || $(PYTHON) -m venv $(VENV)-wheelhouse
	$(VENV)-wheelhouse/bin/python -m pip install --quiet --upgrade "pip>=24" wheel "cmake>=3.21,<5"
	rm -rf dist/wheelhouse
	$(VENV)-wheelhouse/bin/python packaging/wheelhouse.py dist/wheelhouse --work build/wheelhouse

wheelhouse-check:
	packaging/check_wheelhouse.sh dist/wheelhouse

clean:
	rm -rf build dist $(VENV) $(VENV)-reference $(VENV)-wheelhouse
