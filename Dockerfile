# Two images, for machines without and with a card. Neither has been built or run yet; see docs/install.md.
#
#   docker build --target cpu --tag hemafast:cpu .
#   docker build --target cuda --tag hemafast:cuda .
#   docker run --rm --user "$(id -u):$(id -g)" --shm-size 1g \
#     --volume "$PWD/Source:/data/Source" --volume "$PWD/runs:/data/runs" hemafast:cpu train --preset quick
#
# With a card, add `--gpus all` and name hemafast:cuda. The wheels of torch and DALI bring their CUDA libraries, so the
# host needs only the NVIDIA driver and the NVIDIA Container Toolkit.
FROM python:3.11-slim-bookworm AS base

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# Any user may write, because --user may name one that the image does not know.
RUN useradd --create-home hemafast && mkdir -p /data/Source /data/runs && chown -R hemafast /data \
    && chmod 1777 /home/hemafast /data /data/Source /data/runs
ENV HOME=/home/hemafast TORCHINDUCTOR_CACHE_DIR=/home/hemafast/.cache/inductor

WORKDIR /opt/hemafast
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tools/install.py ./tools/
COPY hemafast ./hemafast
ENTRYPOINT ["hemafast"]
CMD ["--help"]
# It imports torch and DALI and looks at disks and memory; --offline, because a container may have no network.
HEALTHCHECK --interval=30m --timeout=2m --start-period=1m --retries=2 CMD ["hemafast", "doctor", "--offline", "--quiet"]

# For size, there is no compiler here (torch.compile seldom wins on a CPU), and nothing of `hemafast explain`.
FROM base AS cpu
RUN python tools/install.py --device cpu export,weights
USER hemafast
WORKDIR /data

FROM base AS cuda
# torch.compile needs a C compiler at run time.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
RUN python tools/install.py --device cuda explain,export,ssl,tune,weights
USER hemafast
WORKDIR /data
