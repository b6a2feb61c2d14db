# The project itself, last, because it changes most often.
ARG BASE
FROM ${BASE}
COPY source/ /opt/iamroles/source/
COPY iamroles /opt/iamroles/bin/iamroles
ENV PATH=/opt/iamroles/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/opt/iamroles/source \
    PYTHONUNBUFFERED=1
RUN python3 -m compileall -q /opt/iamroles/source
WORKDIR /iamroles
