# A GPU-ready image: the wheels of torch and DALI bring their CUDA libraries, so the host needs only the NVIDIA driver and
# the NVIDIA Container Toolkit. This file has not been built or run yet; see the README.
#
#   docker build --tag hemafast .
#   docker run --rm --gpus all --shm-size 1g --user "$(id -u):$(id -g)" \
#     --volume "$PWD/Source:/data/Source" --volume "$PWD/runs:/data/runs" hemafast train --preset quick
FROM python:3.11-slim-bookworm

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility,video

# torch.compile needs a C compiler at run time.
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/hemafast
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY hemafast ./hemafast
RUN pip install --constraint constraints.txt '.[explain,export,weights]'

# Any user may write, because --user may name one that the image does not know.
RUN useradd --create-home hemafast && mkdir -p /data/Source /data/runs && chown -R hemafast /data \
    && chmod 1777 /home/hemafast /data /data/Source /data/runs
USER hemafast
ENV HOME=/home/hemafast TORCHINDUCTOR_CACHE_DIR=/home/hemafast/.cache/inductor
WORKDIR /data

ENTRYPOINT ["hemafast"]
CMD ["--help"]
