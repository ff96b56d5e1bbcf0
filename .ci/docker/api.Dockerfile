# The API alone, without torch: a tenth of the worker's image. Build from the repository's root.
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 embedq
WORKDIR /app

# What changes least comes first, so that a change of the sources installs nothing again.
COPY pyproject.toml README.md LICENSE ./
COPY .ci/constraints.txt .ci/constraints.txt
COPY worker worker
COPY api api
RUN pip install --constraint .ci/constraints.txt '.[api]'

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
