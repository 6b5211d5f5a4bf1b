"""The peers of benchmarks/serve.py, as their documentation would build them: SERVER FOLDER PORT MAX_BATCH THREADS.

Both take JSON with one image in base64.
"""

import base64
import sys

import litserve
import torch
import uvicorn
from fastapi import FastAPI

from fbnetv3.deploy import load


def main():
    server, folder, port, max_batch, threads = sys.argv[1:]
    if server == "fastapi":
        torch.set_num_threads(int(threads))
        serve_with_fastapi(folder, int(port))
    else:
        api = Api(folder, int(threads), max_batch_size=int(max_batch), batch_timeout=0.002)
        server = litserve.LitServer(api, accelerator="cpu", fast_queue=True)
        server.run(port=int(port), log_level="warning", generate_client_file=False)


def serve_with_fastapi(folder, port):
    """Serve one image at a time, in FastAPI's pool of threads; it has no batches."""
    predict = load(folder)
    app = FastAPI()

    @app.post("/predict")
    def answer(request: dict):
        return describe(predict(base64.b64decode(request["image"])))

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


class Api(litserve.LitAPI):
    """Batches of images, in a worker process."""

    def __init__(self, folder, threads, **arguments):
        super().__init__(**arguments)
        self.folder = folder
        self.threads = threads

    def setup(self, device):
        torch.set_num_threads(self.threads)
        self.predictor = load(self.folder)

    def decode_request(self, request):
        return base64.b64decode(request["image"])

    def batch(self, inputs):
        return inputs

    def predict(self, images):
        return self.predictor(images)

    def unbatch(self, outputs):
        return outputs

    def encode_response(self, predictions):
        return describe(predictions)


def describe(predictions):
    return {"predictions": [vars(prediction) for prediction in predictions]}


if __name__ == "__main__":
    main()
