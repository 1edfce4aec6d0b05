#!/bin/bash
# Succeeds while a version of MODEL_NAME is loaded. By bash alone: TensorFlow Serving's image has no curl and no Python.
set -euo pipefail
exec 3<>/dev/tcp/127.0.0.1/8501
printf 'GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$MODEL_NAME" >&3
grep -Eq '"state": *"AVAILABLE"' <&3
