# make demo    set up, build, train on real data, show held-out retrieval
# make test    set up, format and lints, every test
# make fuzz    damaged files by the million, a minute each; FUZZ_SECONDS=600 for longer
# make setup   only fetch what Cargo cannot bring (libtorch, cmake)
# make libtorch-cuda   libtorch's CUDA half too, for a machine with a GPU and no CUDA PyTorch of its own

CARGO ?= cargo
BIN := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: demo test fuzz setup libtorch-cuda build lint clean-demo

setup:
	@python3 deploy/setup/fetch_deps.py

libtorch-cuda:
	@python3 deploy/setup/fetch_deps.py --cuda

build: setup
	$(CARGO) build --release --workspace --bins

demo: build
	$(BIN)/llm2clip run configs/demo.toml --workers 2

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

# The binaries first: the scenarios run the real ones.
test: lint build
	$(CARGO) test --release --workspace

fuzz: setup
	LLM2CLIP_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),60) $(CARGO) test --release -p worker --lib fuzz -- --nocapture

clean-demo:
	rm -rf runs/demo
