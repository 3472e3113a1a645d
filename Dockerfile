# The serving image: index and service, no torch, no compiler, non-root.
#   docker build -t lookalike .
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
RUN python3 -m venv /opt/lookalike
COPY pyproject.toml constraints.txt README.md LICENSE ./
# The dependencies alone, so that a change of the source does not fetch them again.
RUN mkdir index service training training/evaluation training/methods \
 && /opt/lookalike/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[service]' \
 && /opt/lookalike/bin/pip uninstall -y -q lookalike

FROM python:3.11-slim-bookworm AS service
RUN useradd --uid 10001 --create-home lookalike && mkdir /data && chown lookalike /data
COPY --from=build /opt/lookalike /opt/lookalike
WORKDIR /app
COPY index index
COPY service service
COPY examples/encoder.onnx examples/encoder.onnx
COPY examples/gallery examples/gallery
USER lookalike
ENV PATH=/opt/lookalike/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
CMD ["sh", "-c", "python -m index build --encoder examples/encoder.onnx --images examples/gallery --out /data/bank && exec python -m service --encoder examples/encoder.onnx --bank /data/bank --images examples/gallery --host 0.0.0.0 --insecure"]
