# One image for both servers, each by its command:
#
#   docker build -t qtasks .
#   docker run --rm -v qtasks:/data qtasks qtasks broker init      # prints token and signing keys, once
#   docker run -d -p 8080:8080 -v qtasks:/data qtasks              # the broker
#   docker run -d -p 8000:8080 -v ./tasks.py:/app/tasks.py --env-file .env qtasks \
#       qtasks run --host 0.0.0.0 --port 8080 tasks.py             # a dispatcher
#
# Nothing secret is in the image: tokens are in the volume as digests, everything else comes by the environment
# (see .env.example). Put your own code into an image of yours: FROM qtasks, COPY . /app.

FROM python:3.13-slim AS build
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY qtasks ./qtasks
RUN python -m venv /opt/qtasks && /opt/qtasks/bin/pip install --no-cache-dir --disable-pip-version-check ".[broker]"

FROM python:3.13-slim
COPY --from=build /opt/qtasks /opt/qtasks
RUN useradd --system --uid 10001 --no-create-home qtasks && install -d -m 0700 -o 10001 /data
ENV PATH=/opt/qtasks/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    QTASKS_DB=/data/qtasks.db
WORKDIR /app
VOLUME /data
EXPOSE 8080
# By number, so that an orchestrator can see that it is not root.
USER 10001

# The broker answers 200 when its storage takes writes, else 503; a dispatcher knows no such page, but answers.
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8080, timeout=4); c.request('GET', '/readyz'); raise SystemExit(c.getresponse().status >= 500)"]

# `docker stop` waits ten seconds before it kills.
CMD ["qtasks", "broker", "--host", "0.0.0.0", "--port", "8080", "--drain", "8"]
