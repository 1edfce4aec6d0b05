# The gateway: HTTP on 9696, settings by GATEWAY_… variables. No TensorFlow.
#
#   docker build -f image-gateway.dockerfile -t image-classifier-gateway .
#
# With a read-only root it needs a tmpfs at /tmp, where gunicorn's heartbeats go.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS packages
WORKDIR /build
COPY requirements/gateway.txt requirements/
RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --no-cache-dir --require-hashes -r requirements/gateway.txt
# Compiled here, because the image's user cannot write: each process would compile all of it at each start. Readable for
# that user, whatever the umask of the checkout.
WORKDIR /app
COPY contract contract
COPY gateway gateway
RUN chmod -R a+rX . && python -m compileall -q --invalidation-mode unchecked-hash .

FROM ${PYTHON_IMAGE}
COPY --from=packages /opt/venv /opt/venv
COPY --from=packages /app /app
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 9696
USER 10001:10001
ENTRYPOINT ["python", "-m", "gateway"]
# Healthy means that a usable version is loaded. By Python, as the image has no curl, and past http_proxy, which Docker
# hands to containers.
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-c", "import os, urllib.request; urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ.get('GATEWAY_PORT', '9696')}/readyz\")"]
