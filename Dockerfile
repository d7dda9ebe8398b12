# trajgen on CUDA, and on a CPU too:
#   docker build -t trajgen .
#   docker run --rm --gpus all -v "$PWD:/lab" trajgen train recipe=mage
# Smaller, for CPUs alone: --build-arg TORCH_INDEX=URL, the index of CPU builds that pytorch.org names; without --gpus.
FROM python:3.12-slim
ARG TORCH_INDEX=
ARG EXTRAS=hub,log,onnx,sweep,video
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch torchvision
COPY pyproject.toml README.md LICENSE /src/
COPY trajgen /src/trajgen
COPY recipes /src/recipes
RUN pip install --no-cache-dir "/src[$EXTRAS]" && trajgen --version
# Data sets, runs and studies lie in the folder that is mounted.
ENV MINARI_DATASETS_PATH=/lab/datasets
WORKDIR /lab
ENTRYPOINT ["trajgen"]
CMD ["--help"]
