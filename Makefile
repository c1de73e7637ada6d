# The two commands a newcomer needs are `make demo` and `make test`. Everything is made inside this
# folder (.venv, build/) and in $XDG_CACHE_HOME/aicc; nothing is installed on the system.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
AICC := $(BIN)/aicc
ARTIFACT := build/smollm2-135m.aicc
# The cpu family is the fastest where it has kernels for the processor.
TARGET ?= $(if $(filter x86_64,$(shell uname -m)),cpu,openvino:cpu)
PROMPT ?= What is the capital of France?

.PHONY: demo help emulators browser vulkan test test-full test-native soak bench docs lint clean

demo: $(ARTIFACT)  ## Compile a real language model and ask it something.
	$(AICC) inspect $(ARTIFACT)
	$(AICC) run $(ARTIFACT) "$(PROMPT)" --max-tokens 64

help:  ## What there is to make.
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 12

$(ARTIFACT): $(VENV)/.compile
	$(AICC) compile smollm2-135m --target $(TARGET) -o $@

test: $(VENV)/.test emulators browser vulkan lint  ## Everything CI checks; set-up included.
	$(BIN)/pytest -n 2 --dist loadfile

test-full: $(VENV)/.test emulators browser vulkan lint  ## The long checks too: other importers' environments, larger models.
	$(BIN)/pytest -n 2 --dist loadfile -m "full or not full"

# By gcc, since the ziglang wheel has no sanitizer runtime; Python itself is not built for it, so the runtime is preloaded.
test-native: $(VENV)/.test  ## The C kernels and the C interface under AddressSanitizer and UndefinedBehaviorSanitizer.
	AICC_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD=$$(gcc -print-file-name=libasan.so) $(BIN)/pytest tests/native

# Other processors, for the tests: Debian's package, unpacked here. Without it those tests are skipped and say so.
APT := apt-get -qq -o Dir::State::Lists=$$PWD/lists -o Dir::Cache=$$PWD/cache -o Debug::NoLocking=1
emulators:
	@command -v qemu-riscv64 >/dev/null || test -x build/qemu/usr/bin/qemu-riscv64-static || { \
	  mkdir -p build/qemu/lists/partial build/qemu/cache/archives/partial && cd build/qemu && \
	  $(APT) update && $(APT) download qemu-user-static && dpkg-deb -x qemu-user-static*.deb . && rm -r lists cache *.deb; \
	} || echo "No emulators can be fetched: tests of other processors will be skipped."

# A browser for the chat page, with the libraries it needs and this machine lacks; the driver goes last, so it says all is there.
browser:
	@command -v chromedriver >/dev/null || test -x build/chromium/usr/bin/chromedriver || { \
	  mkdir -p build/chromium/lists/partial build/chromium/cache/archives/partial && cd build/chromium && \
	  $(APT) update && $(APT) --yes --download-only --no-install-recommends install chromium chromium-driver && \
	  for package in $$(ls cache/archives/*.deb | grep -v driver) cache/archives/chromium-driver_*.deb; do \
	    dpkg-deb -x $$package . || exit 1; \
	  done && rm -r lists cache; \
	} || echo "No browser can be fetched: tests of the chat page will be skipped."

# A GPU for the tests of webgpu, which Mesa simulates, with the libraries it needs and this machine lacks.
vulkan:
	@ls /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json 2>/dev/null | grep -q . || ls build/vulkan/usr/lib/*/libvulkan_lvp.so >/dev/null 2>&1 || { \
	  mkdir -p build/vulkan/lists/partial build/vulkan/cache/archives/partial && cd build/vulkan && \
	  $(APT) update && $(APT) --yes --download-only --no-install-recommends --reinstall install libvulkan1 mesa-vulkan-drivers && \
	  for package in $$(ls cache/archives/*.deb | grep -v mesa-vulkan) cache/archives/mesa-vulkan-drivers_*.deb; do \
	    dpkg-deb -x $$package . || exit 1; \
	  done && rm -r lists cache; \
	} || echo "No Vulkan driver can be fetched: tests of webgpu will be skipped where there is no other."

lint: $(VENV)/.test  ## Style, types, and which package may import which.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/typing/aicc && ln -sfn ../../../runtime build/typing/aicc/runtime
	MYPYPATH=build/typing $(BIN)/mypy
	$(BIN)/lint-imports

soak: $(VENV)/.test $(ARTIFACT)  ## Half an hour of a server under load, abuse and faults, watching memory and pages.
	$(BIN)/python -m tests.server.soak

# `exact` keeps the published 4-bit blocks; `int4` quantises again, as the peers' exporters do; w8 are 8-bit weights.
BENCHED := exact=build/smollm2-exact.aicc int4=build/smollm2-int4.aicc cpu=build/smollm2-cpu.aicc cpu-int8=build/smollm2-cpu-int8.aicc
BENCHED_W8 := cpu=build/smollm2-cpu-w8.aicc cpu-int8=build/smollm2-cpu-int8-w8.aicc
bench: $(VENV)/.compile  ## Artifacts beside their peers, at 4 and at 8 bits, under conditions, and served to many.
	$(AICC) compile smollm2-135m --target openvino:cpu -o build/smollm2-exact.aicc
	$(AICC) compile smollm2-135m --target openvino:cpu --quant int4 --group-size 32 -o build/smollm2-int4.aicc
	$(AICC) compile smollm2-135m --target cpu -o build/smollm2-cpu.aicc
	$(AICC) compile smollm2-135m --target cpu --activations int8 -o build/smollm2-cpu-int8.aicc
	$(AICC) compile smollm2-135m --target cpu --quant int8 --group-size 32 -o build/smollm2-cpu-w8.aicc
	$(AICC) compile smollm2-135m --target cpu --quant int8 --group-size 32 --activations int8 -o build/smollm2-cpu-int8-w8.aicc
	$(BIN)/python benchmarks/decoder.py --rounds 9 $(BENCHED:%=--artifact %)
	$(BIN)/python benchmarks/decoder.py --rounds 5 --bits 8 $(BENCHED_W8:%=--artifact %)
	rm -rf build/smollm2-lib && $(AICC) compile smollm2-135m --target cpu --activations int8 --emit lib -o build/smollm2-lib
	$(MAKE) -C examples/c MODEL=$(CURDIR)/build/smollm2-lib PROGRAM=$(CURDIR)/build/smollm2-lib/chat
	$(BIN)/python benchmarks/conditions.py $(BENCHED:%=--artifact %) --library build/smollm2-lib
	$(BIN)/python benchmarks/serve.py --artifact cpu=build/smollm2-cpu.aicc

docs: $(VENV)/.test  ## Regenerate what is generated.
	$(BIN)/python docs/generate.py

# One stamp for each set of dependencies, remade when what it was made from changes.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.compile: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing the compiler into $(VENV), PyTorch included: a few minutes, more with PyTorch's CUDA build."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compile,serve]'
	touch $@

$(VENV)/.test: $(VENV)/bin/python pyproject.toml constraints.txt
	@echo "Installing all that the tests need into $(VENV): a few minutes."
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compile,ethos-u,grpc,hexagon,test,tpu,triton,webgpu]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps tosa-tools==2026.8.0  # its pins contradict onnx's
	touch $@

clean:  ## Remove the environments and all that was built; the model cache stays.
	rm -rf build $(VENV) .venv-bench
