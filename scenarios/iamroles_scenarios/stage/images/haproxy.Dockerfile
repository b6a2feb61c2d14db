# HAProxy as a Debian release packs it: bookworm 2.6, trixie 3.0, forky 3.2.
ARG BASE=debian:trixie-slim
FROM ${BASE}
# A testing release's file may have run out on a mirror that is a few days old.
RUN apt-get -o Acquire::Check-Valid-Until=false update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends haproxy \
 && rm -rf /var/lib/apt/lists/*
# An image made by `docker import` has no PATH of its own, and HAProxy lives in an sbin directory.
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /iamroles
