# A Python with the certificates of the place: the lowest layer of every part but HAProxy.
ARG BASE=debian:trixie-slim
FROM ${BASE}
# ca/ holds a README and, where IAMROLES_CA names one, the certificate of a local authority.
COPY ca/ /usr/local/share/ca-certificates/
RUN apt-get -o Acquire::Check-Valid-Until=false update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
      ca-certificates python3 python3-venv \
 && update-ca-certificates \
 && rm -rf /var/lib/apt/lists/*
