# Gateway and embedded model server in one container, for a small host: HTTP on $PORT, 512 MB of memory are enough.
#
#   docker build -f image-single.dockerfile -t image-classifier-single .
#
# MODEL chooses a model of a store mounted at /models; without a mount there is the one that the image carries.
# With a read-only root it needs a tmpfs at /tmp, where the two meet.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# The last two versions of MODEL_NAME in model-store, so that the older answers where a gateway refuses the newer; if there
# is none, EfficientNet-Lite0 with ImageNet weights, as version 0: what anyone releases begins with 1.
# As in image-model.dockerfile to the letter, so that both come from one cache.
FROM ${PYTHON_IMAGE} AS export
WORKDIR /build
COPY requirements/training.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/training.txt
COPY contract contract
COPY serving/*.py serving/
COPY training training
COPY model-store model-store
ARG MODEL_NAME=imagenet
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN versions() { find "model-store/$MODEL_NAME" -mindepth 1 -maxdepth 1 -name '[0-9]*' ! -name '*[!0-9]*' 2>/dev/null | sort -V; }; \
    if [ -z "$(versions)" ]; then \
      [ "$MODEL_NAME" = imagenet ] || { echo "Expected a version of $MODEL_NAME in model-store. Received: none" >&2; exit 1; }; \
      python -m training export --architecture efficientnet-lite0 --weights imagenet --name imagenet; \
      mv "$(versions)" model-store/imagenet/0; \
    fi; \
    mkdir -p "/carried/$MODEL_NAME" "/models/$MODEL_NAME"; \
    versions | tail -n 2 | xargs cp -r -t "/carried/$MODEL_NAME"; \
    ln -s "/carried/$MODEL_NAME/"* "/models/$MODEL_NAME/"

# The embedded model server runs model.tflite, which describes itself as the SavedModel does.
FROM export AS slim
RUN rm -r /carried/*/*/saved_model.pb

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
COPY requirements/gateway.txt requirements/serving.txt requirements/
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes \
      -r requirements/gateway.txt -r requirements/serving.txt

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
COPY contract contract
COPY gateway gateway
COPY serving/*.py serving/
COPY run.py .
COPY --from=slim /carried /models
ARG MODEL_NAME=imagenet
ENV MODEL=${MODEL_NAME} MODEL_STORE=/models PORT=9696
# What keeps the memory below 512 MB: one worker, which decodes one image of at most 16 megapixels at a time.
ENV GATEWAY_WORKERS=1 GATEWAY_THREADS=8 GATEWAY_FETCH_LIMIT=6 GATEWAY_DECODE_LIMIT=1 \
    GATEWAY_MAX_PIXELS=16000000 GATEWAY_MAX_BODY_BYTES=16777216 GATEWAY_MAX_HELD_BYTES=33554432
EXPOSE 9696
USER 10001:10001
ENTRYPOINT ["python", "run.py"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/readyz\")"]
