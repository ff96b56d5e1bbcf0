# The API alone, without torch: a tenth of the worker's image. Build from the repository's root.
FROM python:3.11-slim AS build

WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY worker worker
COPY api api
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .
COPY .ci/constraints.txt /wheels/

# Sources and whatever built the wheel stay behind. All other packages have wheels.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 embedq
# The packages' own test suites are a seventh of all.
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
  pip install --only-binary=:all: --constraint /wheels/constraints.txt \
    "$(echo /wheels/embedq-*.whl)[api]" \
  && find /usr/local/lib -type d -name tests -prune -exec rm -r {} +

USER embedq
WORKDIR /home/embedq
# Two processes add up their metrics in here.
ENV PROMETHEUS_MULTIPROC_DIR=/home/embedq/metrics
# Uploaded files are in a volume, shared with the workers.
RUN mkdir metrics files
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["gunicorn", "-c", "python:api.serving", "-w", "2", "-b", "0.0.0.0:8000", \
     "--log-level", "warning", "api:create_app()"]
