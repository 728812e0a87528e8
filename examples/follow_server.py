"""Serve the champion of a registry: `REGISTRY=registry MODEL=minilm uvicorn follow_server:app`.

    curl -H "content-type: application/json" -d '{"texts": ["a text"]}' localhost:8000/encode

A promotion or a rollback is served within a second, without a restart and without a failed request.
"""

import os

from fastapi import FastAPI
from pydantic import BaseModel

import bitwright

app = FastAPI()
model = bitwright.follow(os.environ["REGISTRY"], os.environ["MODEL"])


class Texts(BaseModel):
    texts: list[str]


@app.post("/encode")
def encode(asked: Texts) -> dict[str, list[list[float]]]:
    return {"vectors": model.encode(asked.texts).tolist()}


@app.get("/health")
def health() -> dict[str, int | str | None]:
    return {"version": model.version, "error": model.status.error}
