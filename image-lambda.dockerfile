# Gateway and model in one process for AWS Lambda: events of API Gateway and of function URLs. No TensorFlow, no gRPC.
#
#   docker build -f image-lambda.dockerfile -t image-classifier-lambda .
#
# Nothing is written, so a read-only root needs no more than what Lambda gives. 512 MB of memory are enough.
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

# The newest version, and of it the one file that is run: int8 where it was released, else fp32.
FROM export AS slim
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
RUN find "/carried/$MODEL_NAME" -mindepth 1 -maxdepth 1 | sort -V | head -n -1 | xargs --no-run-if-empty rm -r; \
    rm /carried/*/*/saved_model.pb; \
    if [ -n "$(find /carried -name model.int8.tflite)" ]; then rm /carried/*/*/model.tflite; fi

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
COPY requirements/serverless.txt requirements/
# Removed is what runs on a GPU or another accelerator, which Lambda has none of, and NumPy's tests: 48 of 169 MB.
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes -r requirements/serverless.txt \
    && find /opt/venv \( -path '*/ai_edge_litert/libLiteRtWebGpu*' -o -path '*/ai_edge_litert/tools' \
      -o -path '*/ai_edge_litert/vendors' -o -path '*/numpy/*tests' \) -prune -exec rm -r {} +
# Compiled here, because nothing can be written there: each cold start would compile all of it.
WORKDIR /app
COPY contract contract
COPY gateway gateway
COPY serving/*.py serving/
COPY serverless serverless
RUN python -m compileall -q --invalidation-mode unchecked-hash .

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /app /app
COPY --from=slim /carried /models
WORKDIR /app
ARG MODEL_NAME=imagenet
ENV PATH=/opt/venv/bin:$PATH PYTHONDONTWRITEBYTECODE=1 MODEL_STORE=/models GATEWAY_MODEL_NAME=${MODEL_NAME}
# What keeps the memory below 512 MB: one image of at most 16 megapixels decoded at a time, eight images in a request.
ENV GATEWAY_DECODE_LIMIT=1 GATEWAY_MAX_PIXELS=16000000 GATEWAY_MAX_IMAGES=8
# The golden gate, in the image as it will be: a version that does not pass ends the build.
RUN ["python", "-c", "import serverless.handler"]
ENTRYPOINT ["python", "-m", "awslambdaric"]
CMD ["serverless.handler.handle"]
