# clair on a CPU, as a user without rights. At run time it needs no network:
#   docker build -t clair .
#   docker run --rm --network none --read-only --tmpfs /tmp --user "$(id -u)" \
#     -v "$PWD:/work" clair merge clients -o merged.safetensors
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1

WORKDIR /build
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY clair_cli ./clair_cli
# torch from its own index, which has builds without CUDA; all else from PyPI
RUN pip install -c constraints.txt --index-url https://download.pytorch.org/whl/cpu torch \
    && pip install -c constraints.txt . \
    && rm -rf /build/*

RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin clair
USER 10001
WORKDIR /work
ENTRYPOINT ["clair"]
CMD ["--help"]
