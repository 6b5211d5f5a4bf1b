# Serve exported networks over HTTP:
#   docker build --tag fbnetv3-serve .
#   docker run --publish 8000:8000 --volume "$PWD/exported:/models:ro" fbnetv3-serve /models/digits
FROM python:3.11-slim

# Wheels of torch without CUDA: the server runs on the CPU
RUN pip install --no-cache-dir --index-url https://download.pytorch.org/whl/cpu torch torchvision

WORKDIR /source
COPY setup.py pyproject.toml MANIFEST.in README.md LICENSE ./
COPY fbnetv3 fbnetv3
COPY configs configs
COPY model_zoo model_zoo
RUN pip install --no-cache-dir '.[serve]' && rm -rf /source

RUN useradd --create-home serve
USER serve
WORKDIR /home/serve

EXPOSE 8000
HEALTHCHECK --start-period=60s CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health/ready')"]
# Without a shell, so that the server gets SIGTERM
ENTRYPOINT ["fbnetv3", "serve", "--host", "0.0.0.0"]
