# TensorFlow Serving with a model: gRPC on 8500, REST on 8501, the model-store at /models.
#
#   docker build -f image-model.dockerfile -t image-classifier-model .
#
# SERVING_IMAGE=embedded takes the embedded model server instead: for arm64, for which TensorFlow Serving has no image,
# and for tests without a registry. Nothing else differs.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG SERVING_IMAGE=tensorflow/serving:2.21.0

# Of MODEL_NAME in model-store, release.json and the versions that it names; without one the last two, so that the older
# answers where a gateway refuses the newer. If there is no version, EfficientNet-Lite0 with ImageNet weights, as version
# 0: what anyone releases begins with 1.
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
    python -m training.release.carried "model-store/$MODEL_NAME" "/carried/$MODEL_NAME"; \
    mkdir -p "/models/$MODEL_NAME"; \
    ln -s "/carried/$MODEL_NAME/"* "/models/$MODEL_NAME/"; \
    chmod -R a+rX /carried  # for the image's user, whatever the umask of the checkout

FROM ${PYTHON_IMAGE} AS embedded
WORKDIR /opt/serving
COPY requirements/serving.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/serving.txt
ENV PYTHONPATH=/opt/serving PYTHONUNBUFFERED=1 XDG_CACHE_HOME=/tmp
COPY contract contract
COPY serving/*.py serving/
RUN printf '#!/bin/sh\nexec python -m serving "$@"\n' > /usr/local/bin/tensorflow_model_server \
    && chmod +x /usr/local/bin/tensorflow_model_server \
    && chmod -R a+rX .

FROM ${PYTHON_IMAGE} AS scripts
COPY serving/container /etc/serving
RUN chmod -R a+rX /etc/serving

FROM ${SERVING_IMAGE}
COPY --from=scripts /etc/serving /etc/serving
COPY --from=export /carried /carried
# Links to what is in /carried. A mount at /models hides it, and entrypoint.sh then copies from /carried.
COPY --from=export /models /models
ARG MODEL_NAME=imagenet
ENV MODEL_BASE_PATH=/models MODEL_NAME=${MODEL_NAME}
EXPOSE 8500 8501
USER 10001:10001
ENTRYPOINT ["/etc/serving/entrypoint.sh"]
CMD []
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["/etc/serving/healthcheck.sh"]
