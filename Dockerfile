# Two images: `docker build --target server -t convoy-server .` is small and holds a parameter server alone;
# `docker build -t convoy .` holds the launcher with all backends, on CUDA's run-time libraries (NVRTC among them).

FROM rust:1.92-bookworm AS source
WORKDIR /src
COPY . .

FROM source AS build-server
RUN cargo build --release --locked -p convoy-server && strip target/release/server

FROM debian:bookworm-slim AS server
COPY --from=build-server /src/target/release/server /usr/local/bin/server
USER nobody
ENTRYPOINT ["server"]

FROM source AS build
RUN cargo build --release --locked && strip target/release/launcher

# A newer C library than that of the build, and CUDA 12, which cudarc looks for at run time.
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS gpu
# The Vulkan loader is for --backend wgpu.
RUN apt-get update && apt-get install -y --no-install-recommends libvulkan1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /src/target/release/launcher /usr/local/bin/launcher
WORKDIR /runs
ENTRYPOINT ["launcher"]
