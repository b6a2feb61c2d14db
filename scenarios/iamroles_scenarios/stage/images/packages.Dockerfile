# The Python packages, from wheels that were brought along: the image needs no registry.
ARG BASE
FROM ${BASE}
COPY wheels/ /wheels/
RUN python3 -m venv /opt/iamroles \
 && /opt/iamroles/bin/pip install --no-index --no-cache-dir --find-links /wheels -r /wheels/requirements.txt \
 && rm -rf /wheels
