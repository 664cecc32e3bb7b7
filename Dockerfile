# camserve for CPUs or for CUDA; `make image` builds it.
#
#   VARIANT      cpu (default) or cuda
#   TORCH_INDEX  for cpu: address of a package index with CPU builds of torch and torchvision. They make the image less than
#                half as large. Without it torch's default wheel is taken, and the CUDA libraries it can do without are removed.
#   BASE         image with Python 3.11 on PATH as python3

ARG BASE=python:3.11-slim

FROM ${BASE} AS builder
ARG VARIANT=cpu
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/camserve
ENV PATH=/opt/camserve/bin:$PATH
WORKDIR /build
# The dependencies by themselves: a change of the source does not install torch again.
COPY pyproject.toml setup.py README.md ./
RUN mkdir service models && touch service/__init__.py \
    && pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} '.[lite]' \
    && rm -rf service models build ./*.egg-info
COPY deploy/slim.py deploy/slim.py
RUN case "$VARIANT" in \
        cpu) pip uninstall --yes triton && python deploy/slim.py && python -c 'import timm, torchvision' ;; \
        cuda) ;; \
        *) echo "VARIANT is cpu or cuda, not '$VARIANT'" >&2; exit 1 ;; \
    esac
COPY service service
COPY models models
RUN pip install --no-deps --force-reinstall . && camserve --help > /dev/null

FROM ${BASE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=""
LABEL org.opencontainers.image.title="camserve" \
      org.opencontainers.image.description="Explanations for image classifiers: POST a photo, get a Grad-CAM overlay back." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Some libraries ask for the user's name and home; a bare number has none.
RUN useradd --system --uid 10001 --home-dir /tmp --shell /usr/sbin/nologin camserve
COPY --from=builder /opt/camserve /opt/camserve
# Bytecode was compiled in the builder. Nothing is written outside /tmp, so the root may be read-only.
ENV PATH=/opt/camserve/bin:$PATH \
    HOME=/tmp \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    CAMSERVE_HOST=0.0.0.0
WORKDIR /tmp
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# The port is the first of these that a platform has set, as in service/settings.py.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python3", "-c", "import http.client, os, sys; names = ('CAMSERVE_PORT', 'AIP_HTTP_PORT', 'SAGEMAKER_BIND_TO_PORT', 'PORT'); port = next((os.environ[name] for name in names if os.environ.get(name)), '8000'); probe = http.client.HTTPConnection('127.0.0.1', int(port), timeout=4); probe.request('GET', '/readyz'); sys.exit(probe.getresponse().status != 200)"]
# Platforms append what they want to the entry point: SageMaker `serve`, KServe arguments of its own.
ENTRYPOINT ["camserve"]
CMD ["serve"]
