# emo_jax on CPU or NVIDIA GPUs. Built with buildah, for CPU and with the extra app, on Debian 12's Python 3.11 in place of
# the official image below, which the development machines cannot fetch. The CUDA image has not been built.
#   docker build -t emo .                          # CPU
#   docker build -t emo --build-arg EXTRA=cuda .   # CUDA: the driver is the host's, its libraries come with pip
#   docker run --rm --shm-size=1g -v "$PWD:/data" emo generate --portrait me.jpg --audio song.mp3 -o me.mp4
#   docker build -t emo --build-arg EXTRA=app . && docker run --rm -p 7860:7860 emo app --host 0.0.0.0    # the web page
#   docker run --rm --gpus all -v "$PWD:/data" emo demo -o demo.mp4
FROM python:3.11-slim-bookworm

ARG EXTRA=""

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    EMO_CACHE=/cache

WORKDIR /opt/emo_jax

COPY constraints.txt setup.cfg pyproject.toml README.md LICENSE ./
COPY emo_jax ./emo_jax
COPY configs ./configs
RUN pip install --constraint constraints.txt ".${EXTRA:+[$EXTRA]}"

RUN useradd --create-home emo && mkdir -p /cache /data && chown emo:emo /cache /data
USER emo
WORKDIR /data
VOLUME ["/cache", "/data"]
EXPOSE 7860

ENTRYPOINT ["emo"]
CMD ["--help"]
