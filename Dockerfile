# One image for both servers, each by its command; docs/deploy/compose.yaml starts them together.
#
#   docker build -t qtasks .
#   docker network create qtasks
#   docker run --rm -v qtasks:/data qtasks qtasks broker init > .env    # token and signing keys, shown once
#   docker run -d --name broker --network qtasks -p 127.0.0.1:8080:8080 -v qtasks:/data \
#       -e QTASKS_BASE_URL=http://dispatcher:8080/qtasks qtasks         # the broker
#   docker run -d --name dispatcher --network qtasks --env-file .env -v ./tasks.py:/app/tasks.py \
#       -e QSTASH_URL=http://broker:8080 -e QTASKS_BASE_URL=http://dispatcher:8080/qtasks qtasks \
#       sh -c 'exec qtasks run --host 0.0.0.0 --port "$PORT" --drain 8 tasks.py'   # a dispatcher
#
# The broker delivers to no private address but that of QTASKS_BASE_URL. Both servers listen at PORT, and the health check
# asks there; hosts that set PORT themselves need nothing more.
# Nothing secret is in the image: tokens are in the volume as digests, everything else comes by the environment
# (see .env.example). Put your own code into an image of yours: FROM qtasks, COPY . /app; `RUN pip install` works there, too.

FROM python:3.13-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY qtasks ./qtasks
RUN python -m venv /opt/qtasks && /opt/qtasks/bin/pip install --no-cache-dir --disable-pip-version-check ".[broker,crypto,mcp,pickle,postgres,redis]"

FROM python:3.13-slim
COPY --chown=10001 --from=build /opt/qtasks /opt/qtasks
RUN useradd --system --uid 10001 --no-create-home qtasks && install -d -m 0700 -o 10001 /data
ENV PATH=/opt/qtasks/bin:$PATH \
    PORT=8080 \
    PYTHONUNBUFFERED=1 \
    QTASKS_DB=/data/qtasks.db
WORKDIR /app
VOLUME /data
EXPOSE 8080
# By number, so that an orchestrator can see that it is not root.
USER 10001

# The broker answers 200 when its storage takes writes, else 503. A dispatcher answers 404, which counts as healthy.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["python", "-c", "import http.client as h, os; c = h.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status >= 500)"]

# `docker stop` waits ten seconds before it kills.
CMD ["sh", "-c", "exec qtasks broker --host 0.0.0.0 --port \"$PORT\" --drain 8"]
