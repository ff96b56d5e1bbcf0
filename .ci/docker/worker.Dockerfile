# The worker: the model on its device. Build from the repository's root.
#   TORCH_INDEX  a package index with the build of torch for the device; empty: PyPI's, with CUDA
FROM python:3.11-slim AS build

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
COPY api api
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
COPY .ci/constraints.txt /wheels/

# Sources and whatever built the wheel stay behind. All other packages have wheels.
FROM python:3.11-slim

ARG TORCH_INDEX=""
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 embedq
# torch is by far the largest and changes least: a layer of its own.
COPY .ci/constraints.txt /opt/
RUN pip install --only-binary=:all: ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} \
  "$(grep '^torch==' /opt/constraints.txt)"
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
  pip install --only-binary=:all: --constraint /wheels/constraints.txt \
    "$(echo /wheels/embedq-*.whl)[worker]"

USER embedq
WORKDIR /home/embedq
# Models from the Hub are kept in a volume, files of requests in one shared with the API.
ENV HF_HOME=/home/embedq/models
RUN mkdir models files
VOLUME /home/embedq/models
# The device's own progress, read from Redis; a process that only lives does not pass.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
  CMD ["embedq", "health"]
STOPSIGNAL SIGTERM
CMD ["celery", "-A", "worker", "worker", "-l", "warning"]
