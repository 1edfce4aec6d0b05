# Gateway and model in one process for AWS Lambda: events of API Gateway and of function URLs. No TensorFlow, no gRPC.
#
#   docker build -f image-lambda.dockerfile -t image-classifier-lambda .    # after image-model.dockerfile
#
# Nothing is written, so a read-only root needs no more than what Lambda gives. 512 MB of memory are enough.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG MODEL_IMAGE=image-classifier-model

# What image-model.dockerfile exported or took from model-store.
FROM ${MODEL_IMAGE} AS model

# The stable version, or without a release.json the newest. Of it the one file that is run: int8 if there is one, else fp32.
FROM ${PYTHON_IMAGE} AS slim
ARG MODEL_NAME=imagenet
COPY --from=model /carried /carried
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
WORKDIR /carried/$MODEL_NAME
RUN kept=$(if [ -e release.json ]; then sed -n 's/^  "stable": \([0-9]*\),$/\1/p' release.json; else printf '%s\n' * | sort -V | tail -n 1; fi); \
    find . -mindepth 1 -maxdepth 1 ! -name "$kept" ! -name release.json -exec rm -r {} +; \
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
# Compiled here, because nothing can be written there: each cold start would compile all of it. Readable for the user of
# the function, whatever the umask of the checkout.
WORKDIR /app
COPY contract contract
COPY gateway gateway
COPY serving/*.py serving/
COPY serverless serverless
RUN chmod -R a+rX . && python -m compileall -q --invalidation-mode unchecked-hash .

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
