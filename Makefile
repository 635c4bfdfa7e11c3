# make demo    set up, build, tune an LLM on captions, train on real data against it, show what tuning was good for
# make demo-quick   the same without tuning the LLM, in half the time
# make test    set up, format and lints, every test
# make setup   only fetch what Cargo cannot bring (libtorch, cmake)
# make libtorch-cuda   libtorch's CUDA half too, for a machine with a GPU and no CUDA PyTorch of its own
# make sim     the cluster in a simulator: SEEDS=1000 runs so many seeds, SEED=7 replays one and says all that happens
# make long   the scenarios that `make test` leaves out, as each takes minutes
# make gpu-path   scenarios with a stand-in for a GPU and its NCCL, which is strict where a GPU goes wrong silently
# make soak   any process of a cluster is killed or stopped, again and again: FAILURES=200, MEAN_S=10 seconds apart on average, SEED=1
# make fuzz    damaged files against the readers, FUZZ_SECONDS each (default 60)
# make peers   transformers, open_clip and peft, in which `make test` then loads an export (6 GB)
# make s3-server   the S3 server that the tests of object storage run against
# make etcd    the etcd that the tests of the shared store run against (Debian's package; without it they are skipped)

CARGO ?= cargo
FUZZ_SECONDS ?= 60
SEEDS ?= 1000
FAILURES ?= 200
MEAN_S ?= 10
BIN := $(or $(CARGO_TARGET_DIR),target)/release

.PHONY: demo demo-quick test long gpu-path sim soak setup libtorch-cuda s3-server etcd peers build lint fuzz clean-demo

setup:
	@python3 deploy/setup/fetch_deps.py

libtorch-cuda:
	@python3 deploy/setup/fetch_deps.py --cuda

s3-server:
	@python3 deploy/setup/fetch_s3_server.py

etcd:
	@python3 deploy/setup/fetch_etcd.py

peers:
	@python3 deploy/setup/fetch_peers.py

build: setup
	$(CARGO) build --release --workspace --bins

demo: build
	$(BIN)/llm2clip run configs/demo.toml --workers 2
	$(BIN)/llm2clip run configs/demo-raw.toml --workers 2
	$(BIN)/llm2clip compare raw=runs/demo-raw tuned=runs/demo

demo-quick: build
	$(BIN)/llm2clip run configs/demo-quick.toml --workers 2

lint: setup
	$(CARGO) fmt --all --check
	$(CARGO) clippy --release --workspace --all-targets -- -D warnings

# The binaries first: the scenarios run the real ones.
test: lint build s3-server
	-@python3 deploy/setup/fetch_etcd.py
	$(CARGO) test --release --workspace

long: build
	$(CARGO) test --release --workspace --test weather --test together --test etcd --test store_writes --test detection -- --ignored --nocapture

GPU_PATH := tuning objectives distill eval export same_loss vectors model_eval periodic recovery elastic phases resume storage why
gpu-path: build
	LLM2CLIP_TEST_STAND_IN=1 $(CARGO) test --release --workspace $(addprefix --test ,$(GPU_PATH))

soak: build
	-@python3 deploy/setup/fetch_etcd.py
	FAILURES=$(FAILURES) MEAN_S=$(MEAN_S) SEED=$(or $(SEED),1) $(CARGO) test --release --workspace --test soak -- --nocapture

sim: setup
	SEED=$(SEED) SEEDS=$(SEEDS) FIRST=$(FIRST) $(CARGO) test --release --workspace --test sim whatever -- --nocapture

fuzz: setup
	LLM2CLIP_FUZZ_SECONDS=$(FUZZ_SECONDS) $(CARGO) test --release --workspace --lib --test 'fuzz_*' fuzz -- --nocapture

clean-demo:
	rm -rf runs/demo runs/demo-raw runs/demo-quick
