# Two images, for machines without and with a card. Neither has been built or run yet; see docs/install.md.
#
#   docker build --target cpu --tag hemafast:cpu .
#   docker build --target cuda --tag hemafast:cuda .
#   docker run --rm --init --user "$(id -u):$(id -g)" --shm-size 1g \
#     --volume "$PWD/Source:/data/Source" --volume "$PWD/runs:/data/runs" \
#     --volume hemafast-cache:/home/hemafast/.cache hemafast:cpu train --preset quick
#
# With a card, add `--gpus all` and name hemafast:cuda. The wheels of torch and DALI bring their CUDA libraries, so the
# host needs only the NVIDIA driver and the NVIDIA Container Toolkit. Without `--init`, signals do not end a command that
# does not handle them. The volume of the cache keeps compiled kernels, trials and weights for the next container.
FROM python:3.11-slim-bookworm AS base

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1

# Any user may write, because --user may name one that the image does not know.
RUN useradd --create-home hemafast && mkdir -p /home/hemafast/.cache /data/Source /data/runs \
    && chown -R hemafast /home/hemafast /data \
    && chmod 1777 /home/hemafast /home/hemafast/.cache /data /data/Source /data/runs
ENV HOME=/home/hemafast TORCHINDUCTOR_CACHE_DIR=/home/hemafast/.cache/inductor

WORKDIR /opt/hemafast
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY tools/install.py ./tools/
# The packages are installed around an empty one and the code comes last: a change of it fetches nothing anew.
RUN mkdir hemafast && touch hemafast/__init__.py
ENTRYPOINT ["hemafast"]
CMD ["--help"]
# It imports torch and DALI and looks at disks and memory; --offline, because a container may have no network.
HEALTHCHECK --interval=30m --timeout=2m --start-period=1m --retries=2 CMD ["hemafast", "doctor", "--offline", "--quiet"]

# For size, there is no compiler here (torch.compile seldom wins on a CPU), and nothing of `hemafast explain`. An index
# without the CPU build is an error: the usual one would make this image three times as large.
FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python tools/install.py --device cpu --torch-index "$TORCH_INDEX" export,weights \
    && python -c 'import sys, torch; sys.exit(torch.version.cuda and "no index has the CPU build: --build-arg TORCH_INDEX=URL")'
COPY hemafast ./hemafast
RUN python -m compileall -q hemafast
USER hemafast
WORKDIR /data

FROM base AS cuda
# torch.compile needs a C compiler at run time.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video
RUN python tools/install.py --device cuda explain,export,ssl,tune,weights
COPY hemafast ./hemafast
RUN python -m compileall -q hemafast
USER hemafast
WORKDIR /data
