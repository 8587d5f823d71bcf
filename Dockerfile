# Tally in a container. Stages:
#   node      (default) builds the binary from source and runs it
#   prebuilt  runs target/release/tally as built on this machine (Debian 12 or older glibc)
#   devchain  anvil with the contracts: a development chain for docker-compose.yml
#   model     fetches the default model into a volume, then ends

FROM rust:1.95-bookworm AS build
WORKDIR /build
# Not the whole context: a prebuilt binary in it would make every build of this stage anew.
COPY Cargo.toml Cargo.lock ./
COPY contracts contracts
COPY crates crates
COPY src src
# Named in the VERSION line of the log; the context has no .git to read them from.
ARG TALLY_COMMIT=unknown
ARG TALLY_BUILD_DATE=unknown
ENV TALLY_COMMIT=${TALLY_COMMIT} TALLY_BUILD_DATE=${TALLY_BUILD_DATE}
RUN cargo build --release --locked --bin tally \
    && target/release/tally --version

FROM debian:bookworm-slim AS runtime
# curl is the health check's; certificates are for RPC endpoints over https.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /var/lib/tally \
        --shell /usr/sbin/nologin tally \
    && install -d -o tally -g tally -m 0750 /var/lib/tally \
    && install -d -m 0755 /models /etc/tally
ENV TALLY_LISTEN=0.0.0.0:8080 \
    TALLY_DATA_DIR=/var/lib/tally \
    TALLY_MODEL_PATH=/models/SmolLM2-135M-Instruct.Q4_1.gguf
WORKDIR /var/lib/tally
USER tally
VOLUME ["/var/lib/tally"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# -f fails on 503; the body is read as well, so that something else on the port is not "healthy".
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD curl -fsS --max-time 4 http://127.0.0.1:8080/health \
        | grep -Eq '"status" *: *"(healthy|degraded)"' || exit 1
ENTRYPOINT ["tally"]
CMD ["serve"]

FROM runtime AS prebuilt
COPY target/release/tally /usr/local/bin/tally
RUN ["tally", "--version"]

FROM node:20-bookworm-slim AS devchain
WORKDIR /tally
COPY tools/package.json tools/package-lock.json tools/.npmrc tools/
# The stamp tells scripts/lib/tools.sh that the install is whole; it would be done again at each start.
RUN cd tools && npm ci --ignore-scripts --no-audit --no-fund \
    && cat package.json package-lock.json > node_modules/.tally-pins
COPY contracts contracts
COPY scripts scripts
RUN install -d -o node -g node /chain && chown -R node:node /tally/tools
USER node
EXPOSE 8545
# The file appears when the contracts are deployed and the hosts registered.
HEALTHCHECK --interval=2s --timeout=5s --start-period=60s --retries=30 \
    CMD test -s /chain/devchain.json || exit 1
ENTRYPOINT ["scripts/devchain.sh", "--foreground", "--bind", "0.0.0.0", "--port", "8545", \
    "--state-dir", "/chain"]

FROM python:3.11-slim-bookworm AS model
RUN apt-get update \
    && apt-get install -y --no-install-recommends unzip \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /tally
COPY scripts scripts
ENV TALLY_SCRIPT_MODEL_DIR=/models
ENTRYPOINT ["scripts/fetch-model.sh"]

FROM runtime AS node
COPY --from=build /build/target/release/tally /usr/local/bin/tally
