# Gateway and embedded model server in one container, for a small host: HTTP on $PORT, 512 MB of memory are enough.
#
#   docker build -f image-single.dockerfile -t image-classifier-single .    # after image-model.dockerfile
#
# MODEL chooses a model of a store mounted at /models; without a mount there is the one that the image carries.
# With a read-only root it needs a tmpfs at /tmp, where the two meet.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG MODEL_IMAGE=image-classifier-model

# What image-model.dockerfile exported or took from model-store.
FROM ${MODEL_IMAGE} AS model

# The embedded model server runs model.tflite, which describes itself as the SavedModel does.
FROM ${PYTHON_IMAGE} AS slim
COPY --from=model /carried /carried
RUN rm -r /carried/*/*/saved_model.pb

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
COPY requirements/gateway.txt requirements/serving.txt requirements/
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes \
      -r requirements/gateway.txt -r requirements/serving.txt
# Readable for the image's user, whatever the umask of the checkout.
WORKDIR /app
COPY contract contract
COPY gateway gateway
COPY serving/*.py serving/
COPY run.py .
RUN chmod -R a+rX .

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /app /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 XDG_CACHE_HOME=/tmp
WORKDIR /app
COPY --from=slim /carried /models
ARG MODEL_NAME=imagenet
ENV MODEL=${MODEL_NAME} MODEL_STORE=/models PORT=9696 LOGS=-
# What keeps the memory below 512 MB: one worker, which decodes one image of at most 16 megapixels at a time.
ENV GATEWAY_WORKERS=1 GATEWAY_THREADS=8 GATEWAY_FETCH_LIMIT=6 GATEWAY_DECODE_LIMIT=1 \
    GATEWAY_MAX_PIXELS=16000000 GATEWAY_MAX_BODY_BYTES=16777216 GATEWAY_MAX_HELD_BYTES=33554432
EXPOSE 9696
USER 10001:10001
ENTRYPOINT ["python", "run.py"]
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 CMD ["python", "-c", "import os, urllib.request; urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ['PORT']}/readyz\")"]
