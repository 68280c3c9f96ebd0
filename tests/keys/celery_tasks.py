"""The tasks of ``test_servers.py``, with a broker and results in files."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from tests.keys.uwsgi_application import answer

FOLDER = os.environ["CELERY_FOLDER"]

app: Any = Celery("tasks", broker="filesystem://", backend=f"file://{FOLDER}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{FOLDER}/queue",
    "data_folder_out": f"{FOLDER}/queue",
    "control_folder": f"{FOLDER}/control",
}


@app.task
def encrypt(name: str) -> dict[str, Any]:
    """Return what a request of the web application returns."""
    return answer(name)
