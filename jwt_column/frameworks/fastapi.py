"""FastAPI: answers to invalid requests that do not repeat the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

__all__ = ["hide_input"]


def hide_input(app: FastAPI) -> None:
    """Answer invalid requests with status 422 as FastAPI does, but without ``input`` and without tokens in ``loc``.

    A field of type :class:`~jwt_column.JWT` shows no token in its own errors. The error of a *missing* field carries
    the whole body, with every token in it; a validator that raises carries the value that it was given.

    Args:
        app: The application, before it has another handler for ``RequestValidationError``.
    """
    from fastapi.exceptions import RequestValidationError

    app.add_exception_handler(RequestValidationError, _answer_without_input)


async def _answer_without_input(_request: Request, error: Any) -> JSONResponse:
    from fastapi.encoders import jsonable_encoder
    from fastapi.responses import JSONResponse

    from ..format.readable import has_token

    shown = [
        {
            # The keys of a dictionary are part of a place.
            key: ["<redacted>" if has_token(part) else part for part in value] if key == "loc" else value
            for key, value in detail.items()
            if key != "input"
        }
        for detail in error.errors()
    ]
    return JSONResponse({"detail": jsonable_encoder(shown)}, status_code=422)
