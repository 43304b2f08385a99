# For NVIDIA GPUs. Written where no image can be built (docs/status.md).
#
#   docker build -t strive .
#   docker run --rm --gpus all --shm-size 16g -v "$PWD:/workspace" strive doctor
#   docker run --rm --gpus all --shm-size 16g -v "$PWD:/workspace" --entrypoint deepspeed strive \
#       --no_local_rank --module strive.cli train --config strive_qwen2_5_vl_7b ...
#
# torch's wheels bring CUDA along: the host needs a driver and the NVIDIA container toolkit only.
# The full image, not the slim one: Triton compiles with its gcc and Python headers.
FROM python:3.12
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/strive
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY strive strive
RUN pip install --no-cache-dir -c constraints.txt ".[ray,torchcodec,wandb]"
ENV STRIVE_WORKSPACE=/workspace/strive-workspace \
    HF_HOME=/workspace/models
WORKDIR /workspace
ENTRYPOINT ["strive-cli"]
CMD ["doctor"]
