# `dim generate` without PyTorch, not as root:
#
#   docker build --tag dim .
#   docker run --rm --user "$(id -u)" --volume "$PWD:/data" dim generate --ipc 50 --out set
#
# It adds about 240 MB to the base image. tests/project/test_wheel_without_torch.py runs these steps
# without Docker.

FROM python:3.13-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY dim dim
COPY export export
COPY runtime runtime
COPY cli cli
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.13-slim
RUN --mount=type=bind,source=constraints/cpu.txt,target=/install/cpu.txt \
    pip install --no-cache-dir --no-deps --require-hashes -r /install/cpu.txt
RUN --mount=type=bind,from=build,source=/wheels,target=/install/wheels \
    pip install --no-cache-dir --no-deps /install/wheels/*.whl
RUN useradd --create-home dim
USER dim
# Any user may run it: a user without a home has the cache here.
ENV DIM_CACHE=/tmp/dim
WORKDIR /data
ENTRYPOINT ["dim"]
CMD ["generate", "--help"]
