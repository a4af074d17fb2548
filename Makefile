# The two commands of the README, and little else: CMake does the work.
#   make run  [ARGS="--port 9000"]   install what is missing, build, serve the default model
#   make test                        install what tests need, build, run everything
#   make eval [CORPUS=DIR]           the default model's scores, measured again
#   make results [CORPUS=DIR]        docs/results.md: bytes and losses of the cache's methods; WINDOWS, SAMPLES limit it
PRESET ?= release
ARGS   ?=
CORPUS ?=
# Tests at a time: one more than processors, since some wait for others most of the time.
JOBS   ?= $(shell expr $$(nproc) + 1)

.PHONY: run test eval results build check format clean

run:
	@tools/setup.sh run
	@tools/build.sh release
	exec build/release/pikv serve $(ARGS)

test:
	@tools/setup.sh test
	@tools/build.sh dev
	ctest --test-dir build/dev --output-on-failure --parallel $(JOBS)

eval:
	@tools/setup.sh eval
	@tools/build.sh release
	@tools/eval.sh build/release/pikv models/storyteller "$(CORPUS)"

results:
	@tools/setup.sh results
	@tools/build.sh release
	@python3 tools/results.py build/release/pikv models/storyteller --windows $${WINDOWS:-16} \
	    --samples $${SAMPLES:-100} $(if $(CORPUS),--corpus "$(CORPUS)")

build:
	@tools/setup.sh run
	@tools/build.sh $(PRESET)

# The suite of `make test` in the present PRESET, without set-up: make check PRESET=asan
check:
	@tools/build.sh $(PRESET)
	ctest --test-dir build/$(PRESET) --output-on-failure --parallel $(JOBS)

format:
	git ls-files '*.c' '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i

clean:
	rm -rf build
