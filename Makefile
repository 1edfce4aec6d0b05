# What a person does, a verb each. `make run` and `make test` need Python 3.11 to 3.13 with venv, and nothing else.

# Of .env, which docker compose reads, make takes the names below, without quotes or comments. The environment wins.
define in-env-file
$(shell sed -E "/^[^#[:alnum:]_]*(export[[:space:]]+)?$(1)[[:space:]]*=/!d; s///; /^[[:space:]]*[\"']/!s/[[:space:]]#.*//; \
  s/^[[:space:]]+|[[:space:]]+\$$//g; s/^\"([^\"]*)\".*|^'([^']*)'.*/\1\2/" .env 2>/dev/null | tail -n 1)
endef
$(foreach name,\
  MODEL MODEL_NAME PORT ENGINE LOGS TAG PYTHON PYTHON_IMAGE SERVING_IMAGE DOCKER COMPOSE OVERLAY KUBE_LOAD REQUESTS,\
  $(if $(filter undefined,$(origin $(name))),$(eval found := $$(call in-env-file,$(name)))\
    $(if $(findstring $$,$(found)),$(error Expected $(name) in .env without $$, which make does not expand. Received: $(found)))\
    $(if $(found),$(eval $(name) := $$(found)))))

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL ?= $(or $(MODEL_NAME),imagenet)
PORT ?= 9696
ENGINE ?= auto
LOGS ?= logs
TAG ?= latest
REQUESTS ?= 100000
DOCKER ?= docker
COMPOSE ?= $(shell $(DOCKER) compose version >/dev/null 2>&1 && echo $(DOCKER) compose || echo docker-compose)
OVERLAY ?= local
KUBE_LOAD ?= kind load docker-image
# What a command gets of these names, whose values may have blanks and quotes.
with = $(foreach name,$(1),$(name)='$(subst ','\'',$($(name)))')
# By uv, apart from .venv: it pins dozens of packages.
CHECKOV := checkov@3.3.30

.PHONY: help setup run images up down kube test test-docker test-kube check check-kube format messages requirements benchmark benchmark-engines benchmark-overhead soak faults corpus pictures clean

help:  ## show the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/installed  ## make .venv with everything that is pinned in requirements/dev.txt

$(VENV)/installed: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Expected Python 3.11 to 3.13, for which TensorFlow has packages. Received: " + sys.version.split()[0] + ". Choose another: make setup PYTHON=python3.12")'
	@echo "==> Installing into $(VENV): 3 GB with TensorFlow; nothing is shown for some minutes"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

run: setup  ## model server and gateway in the foreground; MODEL=, PORT= and ENGINE= choose, LOGS=- shows their logs
	@$(call with,MODEL PORT ENGINE LOGS) $(BIN)/python run.py

images: model-image gateway-image single-image lambda-image  ## build the four images; MODEL=, PYTHON_IMAGE= and SERVING_IMAGE= choose what is in them
	@! grep -qs '"trial": {' model-store/$(MODEL)/release.json || \
	  echo "Warning: the image carries a version that is tried. In a cluster without model-volume or release-configmap, it answers everything if it is the newest" >&2

# Of what .env and the environment do not set, the dockerfile's own default counts.
# Without attestations, which Docker's buildx adds by itself: AWS Lambda refuses an image that has them.
%-image:
	@DOCKER_BUILDKIT=1 BUILDX_NO_DEFAULT_ATTESTATIONS=1 $(DOCKER) build -f image-$*.dockerfile -t image-classifier-$*:$(TAG) \
	  $(if $(PYTHON_IMAGE),--build-arg PYTHON_IMAGE=$(PYTHON_IMAGE)) \
	  $(if $(and $(findstring model,$*),$(SERVING_IMAGE)),--build-arg SERVING_IMAGE=$(SERVING_IMAGE)) \
	  $(if $(filter-out gateway,$*),--build-arg MODEL_NAME=$(MODEL)) \
	  $(if $(filter single lambda,$*),--build-arg MODEL_IMAGE=image-classifier-model:$(TAG)) .

single-image lambda-image: model-image  # they carry what it exported

up: model-image gateway-image  ## docker compose up, in the background; MODEL_NAME and PORT in .env choose, or MODEL= and PORT= this once
	@# Compose passes only the names in its file, and says nothing about others.
	@{ cat .env 2>/dev/null; env; } | sed -nE 's/^[[:space:]]*(export[[:space:]]+)?(GATEWAY_[A-Za-z0-9_]+).*/\2/p' | sort -u | \
	  while read -r name; do grep -qE "^      - $$name( |$$)" docker-compose.yaml || \
	  echo "Warning: $$name does not reach the gateway under Compose. docs/settings.md lists the settings; MODEL= and PORT= choose model and port" >&2; done
	@MODEL_NAME='$(MODEL)' $(call with,PORT TAG) $(COMPOSE) up --detach --no-build
	@echo "==> Open http://localhost:$(PORT)/ in a browser"

down:  ## docker compose down; the model-store stays
	@$(COMPOSE) --profile monitoring down

test: setup  ## the whole test suite, but for what needs Docker or a cluster
	@$(BIN)/python -m pytest -m "not docker and not kube"

test-docker: setup  ## build the images and test them, and the stack; DOCKER= is the client
	@$(call with,DOCKER) $(BIN)/python -m pytest -m docker

test-kube: setup  ## deploy to the cluster that kubectl points at, under names of the tests' own; KUBE_LOAD= loads images there
	@$(call with,DOCKER KUBE_LOAD) $(BIN)/python -m pytest -m kube

check: setup  ## formatting, lint and types
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

format: setup  ## format, and mend what lint can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

messages: setup  ## generate contract/messages_pb2.py from messages.proto
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. contract/messages.proto

requirements: setup  ## pin what pyproject.toml asks for, with hashes
	@for extra in gateway serverless serving training dev; do \
	  $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	    --extra $$extra -o requirements/$$extra.txt pyproject.toml; \
	done

benchmark: setup  ## the whole stack beside FastAPI, Machine Learning Bookcamp's gateway, LitServe and BentoML, in half an hour
	@$(BIN)/python -m benchmarks.compare

benchmark-engines: setup  ## images a second of each engine, as a ratio to the plain Keras export
	@$(BIN)/python -m benchmarks.engines

benchmark-overhead: setup  ## CPU that the gateway itself spends on a request
	@$(BIN)/python -m benchmarks.overhead

soak: setup  ## memory of the whole stack over REQUESTS= requests
	@$(call with,REQUESTS) $(BIN)/python -m benchmarks.soak

faults: setup  ## inject each fault into the running stack, and print what is seen beside what is expected
	@$(BIN)/python -m benchmarks.faults

corpus: setup  ## send Pillow's own test images through the running stack, in every form
	@$(BIN)/python -m benchmarks.corpus

pictures: setup  ## take the pictures of docs/tutorial.md, after its commands; it needs chromium
	@$(BIN)/python -m tests.programs.pictures

kube:  ## deploy to the cluster that kubectl points at, or roll new images out there; OVERLAY=production chooses
	@echo "==> Applying kube/overlays/$(OVERLAY) to $$(kubectl config current-context)"
	@kube/apply.sh $(OVERLAY)

check-kube: setup  ## checkov on what the overlays render; it downloads checkov once, and needs kubectl
	@mkdir -p .cache/kube
	@kubectl kustomize kube/overlays/local > .cache/kube/local.yaml
	@kubectl kustomize kube/overlays/production > .cache/kube/production.yaml
	@$(BIN)/uv tool run --quiet $(CHECKOV) --config-file kube/checkov.yaml --directory .cache/kube

clean:  ## remove the environment and caches; models and runs stay
	@rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache
