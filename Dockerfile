# One image for the API and the worker: `serve` or `worker` is its argument. All Python packages come from the lock file,
# with hashes and as wheels; the final stage has no pip, no compiler and no root.

FROM python:3.13-slim-bookworm AS packages
COPY requirements/runtime.txt /requirements.txt
# An environment without pip, filled by the pip of the base image, so that the final stage gets no pip.
RUN python -m venv --without-pip /opt/tokenspool \
    && pip --python /opt/tokenspool/bin/python install \
        --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes --requirement /requirements.txt

FROM python:3.13-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin tokenspool \
    && pip uninstall --yes --quiet --root-user-action ignore pip
COPY --from=packages /opt/tokenspool /opt/tokenspool
WORKDIR /app
COPY LICENSE NOTICE ./
COPY shared ./shared
COPY api ./api
COPY worker ./worker
COPY cli ./cli
COPY simulator ./simulator
# Compiled here: the final user cannot write, so Python would compile again at each start.
RUN ["/opt/tokenspool/bin/python", "-m", "compileall", "-q", "/app"]
ENV PATH=/opt/tokenspool/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
# By number: Kubernetes' runAsNonRoot cannot check a name.
USER 10001
EXPOSE 8000
ENTRYPOINT ["python", "-m", "cli"]
CMD ["serve", "--host", "0.0.0.0"]
