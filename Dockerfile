# The image is built with the same make targets that a reader of the README uses.
FROM debian:12-slim

RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates make python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/identree
COPY . .
RUN make runtime-venv catalogues agent \
 && useradd --system --uid 10389 --home-dir /config --shell /usr/sbin/nologin identree \
 && install -d -o identree -g identree -m 0700 /config

ENV PATH=/opt/identree/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    IDENTREE_AGENT_FILE=/opt/identree/build/identree.pyz \
    IDENTREE_TOML_CONFIG_FILE=/config/identree.toml

USER identree
WORKDIR /config
VOLUME /config
EXPOSE 8090 389 636

HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["identree", "healthcheck"]
CMD ["identree", "serve"]
