"""What may be asked: the parameters of each address, read strictly, and the OpenAPI text made from them."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.datastructures import ImmutableMultiDict, UploadFile

from furnclip import __version__
from furnclip.config import ServeConfig
from furnclip.errors import UsageError, nearest
from furnclip.search.table import Hit

_LONGEST_WHERE = 4000  # characters; a longer one does not fit into an address


class Params(BaseModel):
    """Parameters of a request; the description of each is its documentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True, allow_inf_nan=False
    )


class ProductParams(Params):
    """None: the product's id is in the address."""


class SimilarParams(Params):
    """Which of the products like one are wanted."""

    k: int | None = Field(None, ge=1)
    """number of hits; without it `search.k`"""
    where: str = Field("", max_length=_LONGEST_WHERE)
    """SQL filter over the product columns, e.g. `color = 'brown'`"""


class SearchParams(SimilarParams):
    """A search."""

    q: str = ""
    """what to look for"""
    exclude: list[str] = Field([], alias="not", max_length=20)
    """word that hits must not have, repeatable"""
    mode: Literal["vector", "keyword", "hybrid"] | None = None
    """`vector`: by meaning; `keyword`: by words (BM25); `hybrid`: both; without it `search.mode`"""
    sort: str | None = Field(None, max_length=100)
    """column to sort the best hits by; with `-` in front the largest first"""
    literal: bool = False
    """take the query as words only, not as filters"""
    all_variants: bool = False
    """do not fold the products of a group into one"""


class ImageParams(SearchParams):
    """A search with an image, and perhaps a text."""

    image_weight: float | None = Field(None, ge=0, le=1)
    """weight of the image where there is a text too; without it `search.image_weight`"""


class FacetParams(Params):
    """Which columns are counted, of which products."""

    columns: str = Field("object_type,color,material,style", max_length=500)
    """columns to count, separated by commas"""
    q: str = ""
    """count those products only that have these words"""
    where: str = Field("", max_length=_LONGEST_WHERE)
    """SQL filter over the product columns"""


P = TypeVar("P", bound=Params)


def read(given: ImmutableMultiDict[str, Any], shape: type[P], limits: ServeConfig) -> P:
    """The parameters; raises `UsageError` for what is unknown, given twice or out of its range."""
    names = {field.alias or name: field for name, field in shape.model_fields.items()}
    values: dict[str, Any] = {}
    for name, value in given.multi_items():
        if isinstance(value, UploadFile):
            continue
        if name not in names:
            close, known = nearest(name, names), f"known here: {', '.join(names) or 'none'}"
            hint = f"did you mean `{close}`?" if close else known
            raise UsageError(f"there is no parameter `{name[:40]}`", hint=hint)
        if get_origin(names[name].annotation) is list:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise UsageError(f"`{name}` is given twice", hint="give it once")
        else:
            values[name] = value
    try:
        params = shape(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, message, shown = str(first["loc"][0]), first["msg"], str(first["input"])[:60]
        problem = f"`{name}` cannot be `{shown}`: {message[:1].lower()}{message[1:]}"
        problem = f"`{name}` is missing" if first["type"] == "missing" else problem
        raise UsageError(problem, hint="see /docs") from None
    k, query = getattr(params, "k", None), getattr(params, "q", "")
    if k is not None and k > limits.max_k:
        raise UsageError(f"`k` cannot be {k}", hint=f"ask for at most {limits.max_k} hits")
    if len(query) > limits.max_query_chars:
        most = f"ask with at most {limits.max_query_chars} characters"
        raise UsageError(f"the query has {len(query)} characters", hint=most)
    return params


# method, path, what it does, parameters, what comes back
ROUTES: tuple[tuple[str, str, str, type[Params], str], ...] = (
    ("get", "/search", "Products for a text, best first.", SearchParams, "Answer"),
    ("post", "/search", "Products that look like an image, the form's `image`.", ImageParams, "Answer"),
    ("get", "/products/{product_id}/similar", "Products like one, without it.", SimilarParams, "Answer"),
    ("get", "/products/{product_id}", "One product.", ProductParams, "Hit"),
    ("get", "/images/{product_id}", "The image of a product, as JPEG.", ProductParams, "jpeg"),
    ("get", "/facets", "How many products have each value of some columns.", FacetParams, "Facets"),
    ("get", "/health", "200 as long as the process answers.", ProductParams, "State"),
    ("get", "/ready", "200 while requests are wanted, else 503.", ProductParams, "State"),
    ("get", "/metrics", "Counters and times, in Prometheus' text format.", ProductParams, "text"),
)
_TYPES: dict[str, dict[str, Any]] = {"jpeg": {"image/jpeg": {}}, "text": {"text/plain": {}}}
_FILE = {"type": "string", "format": "binary", "description": "an image file"}
_ID = {"name": "product_id", "in": "path", "required": True, "schema": {"type": "string"}}


def openapi(limits: ServeConfig) -> dict[str, Any]:
    """The OpenAPI description of the service."""
    paths: dict[str, Any] = {}
    for method, path, summary, shape, answer in ROUTES:
        properties = shape.model_json_schema(by_alias=True).get("properties", {})
        fields = {name: _schema(name, field, limits) for name, field in properties.items()}
        operation: dict[str, Any] = {
            "summary": summary,
            "parameters": [_ID] if "{" in path else [],
            "responses": {
                "200": {"description": "done", "content": _TYPES.get(answer) or _json(answer)},
                "default": {"description": "refused", "content": _json("Error")},
            },
        }
        if method == "post":
            form = {"type": "object", "required": ["image"], "properties": {**fields, "image": _FILE}}
            content = {"multipart/form-data": {"schema": form}}
            operation["requestBody"] = {"required": True, "content": content}
        else:
            operation["parameters"] += [
                {"name": name, "in": "query", "description": field.pop("description"), "schema": field}
                for name, field in fields.items()
            ]
        paths.setdefault(path, {})[method] = operation
    about = {"title": "furnclip", "version": __version__, "description": "Search of a furniture catalogue."}
    return {"openapi": "3.1.0", "info": about, "paths": paths, "components": {"schemas": _schemas()}}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _schema(name: str, field: dict[str, Any], limits: ServeConfig) -> dict[str, Any]:
    """Of a parameter; one that is not given is None here, which nobody can send."""
    schema = {**field, **field.get("anyOf", [{}])[0]}
    schema = {key: value for key, value in schema.items() if key not in ("title", "anyOf")}
    if "anyOf" in field:
        del schema["default"]
    limit = {"k": {"maximum": limits.max_k}, "q": {"maxLength": limits.max_query_chars}}
    return schema | limit.get(name, {})


def _schemas() -> dict[str, Any]:
    text, counts = {"type": "string"}, {"type": "object", "additionalProperties": {"type": "integer"}}
    shapes = {
        "Answer": {
            **dict.fromkeys(("query", "mode", "model", "table", "note"), text),
            "understood": {"type": "array", "items": text},
            "products": {"type": "integer"},
            "seconds": {"type": "number"},
            "hits": {"type": "array", "items": {"$ref": "#/components/schemas/Hit"}},
        },
        "Facets": {"table": text, "facets": {"type": "object", "additionalProperties": counts}},
        "Error": {"error": text, "hint": text},
        "State": {"status": text},
    }
    hit = TypeAdapter(Hit).json_schema()
    return {"Hit": hit, **{name: {"type": "object", "properties": each} for name, each in shapes.items()}}
