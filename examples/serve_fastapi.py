"""
Serve a detector over HTTP
==========================

A service in thirty lines, with `FastAPI <https://fastapi.tiangolo.com>`__. The client sends the content of an image
file, and receives the label, the score, the p-value and the anomalous regions. The service needs
``pip install fastapi uvicorn``. The service is not executed when this page is built. A test of the package runs the
service.

Start it in the folder of this file, with the path of a model file. Send the content of an image as the body of the
request, not as a form:

.. code-block:: bash

    PARTS_MODEL=parts.skops uvicorn serve_fastapi:app
    curl --data-binary @parts/new/7.png -H "Content-Type: application/octet-stream" localhost:8000/inspect
"""

import math
import os
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool

import skpatchcore
from skpatchcore.maps import regions_of_map


@asynccontextmanager
async def lifespan(app):
    """Load the model, and score one grey image so that the first client does not wait for the network to load."""
    app.state.detector = skpatchcore.load(os.environ["PARTS_MODEL"])
    list(app.state.detector.iter_results([np.full((512, 512, 3), 127, np.uint8)]))
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/inspect")
async def inspect(request: Request, response: Response):
    """Return label, score, p-value and regions of the image in the body of the request."""
    content, detector = await request.body(), app.state.detector
    [result] = await run_in_threadpool(lambda: list(detector.iter_results([content], on_error="flag")))
    if result.error is not None:  # such an image is never reported as normal
        response.status_code = 422
        return {"label": -1, "error": result.error.message}
    regions = regions_of_map(result.anomaly_map, detector.pixel_offset_, 1).to_dict("records")
    numbers = {"score": result.score, "p_value": result.p_value}
    return {"label": result.label, **{k: None if math.isnan(v) else v for k, v in numbers.items()}, "regions": regions}
