"""The OpenAPI document, made from the operations and their models."""

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from aiomigrate import __version__
from aiomigrate.api.models import Errors, Refused
from aiomigrate.api.operations import OPERATIONS, QUERY, Operation

__all__ = ["CLOUD_HYPERVISORS", "OURS", "make_document"]

CLOUD_HYPERVISORS = "cloud-hypervisor"
"""The tag of operations that Cloud Hypervisor has, too."""
OURS = "aiomigrate"

_WHERE = "#/components/schemas/{model}"
_OTHERS = {
    "/events": ("Events from now on, as server-sent events", "text/event-stream"),
    "/metrics": ("Metrics for Prometheus", "text/plain"),
    "/openapi.json": ("This document", "application/json"),
    "/": ("A page to watch migrations, for people", "text/html"),
    "/reference": ("This document, for people", "text/html"),
}
_MEANINGS = {
    "400": "The request cannot be meant: why, the outermost first",
    "404": "There is no such VM or migration",
    "409": "The migration, as it is, does not allow that",
    "500": "The VM, as it is, does not allow that (Cloud Hypervisor's status for it)",
}


def make_document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    models: list[type[BaseModel]] = [Errors, Refused]
    for operation in OPERATIONS:
        models += [model for model in (operation.body, operation.answer) if model is not None]
    unique = [(model, "serialization") for model in dict.fromkeys(models)]
    # Requests have the same schema both ways: their defaults are not required of a client.
    kinds = [
        (model, "validation" if any(model is op.body for op in OPERATIONS) else mode)
        for model, mode in unique
    ]
    references, definitions = models_json_schema(kinds, ref_template=_WHERE)  # type: ignore[arg-type]  # its modes are literals
    names: dict[type, Any] = {model: reference for (model, _), reference in references.items()}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, names)
    for path, (summary, content_type) in _OTHERS.items():
        content = {content_type: {"schema": {"type": "string"}}}
        if content_type == "application/json":
            content = {content_type: {"schema": {"type": "object"}}}
        paths[path] = {
            "get": {
                "summary": summary,
                "operationId": path.strip("/") or "page",
                "responses": {"200": {"description": "It", "content": content}},
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "aiomigrate",
            "version": __version__,
            "description": "Live migration of virtual machines. Paths that Cloud Hypervisor has, "
            "too, take the bodies of its client and answer with its statuses.",
        },
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _describe(operation: Operation, names: dict[type, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.name,
        "tags": [CLOUD_HYPERVISORS if operation.failing else OURS],
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "description": meaning,
                "schema": {"type": "string", "minLength": 1},
            }
            for name, meaning in QUERY.items()
            if name in operation.asks
        ],
        "responses": _responses(operation, names),
    }
    if operation.body is not None:
        content = {"application/json": {"schema": names[operation.body]}}
        described["requestBody"] = {"required": True, "content": content}
    return described


def _responses(operation: Operation, names: dict[type, Any]) -> dict[str, dict[str, Any]]:
    statuses = ["400"]
    if operation.asks:
        statuses.append("404")
    if operation.failing:
        statuses += ["500"] * (operation.name != "vmm.ping")
    elif operation.method == "PUT":
        statuses.append("409")
    responses: dict[str, dict[str, Any]] = {}
    if operation.answer is None:
        responses["204"] = {"description": "Done"}
    else:
        content = {"application/json": {"schema": names[operation.answer]}}
        responses["200"] = {"description": "Done", "content": content}
    for status in statuses:
        schema = names[Refused if status == "500" else Errors]
        content = {"application/json": {"schema": schema}}
        responses[status] = {"description": _MEANINGS[status], "content": content}
    return responses
