"""What a live endpoint is asked and how its answers are read: a small file `*.endpoint.yaml`,
`.yml` or `.json`.

    url: https://models.example/predict
    shape: [3, 32, 32]
    classes: [cat, dog, ship]
    gives: probabilities
    request: {json: {instances: $inputs}}
    response: predictions.*.scores
    headers: {Authorization: "Bearer ${MODEL_TOKEN}"}
    max_queries: 20000

A secret is kept in the environment, never in the file: a header that looks like one must name a
variable.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from holdfast.data.files import read_yaml
from holdfast.errors import InputError, suggest
from holdfast.threats.images import channel_axis

# in a template: the rows, one row, and what is said of each row
ALL, ONE, EACH = "$inputs", "$input", "$each"
_SECRET = re.compile(
    r"auth|key|token|cookie|secret|passw|credential|session|signature", re.IGNORECASE
)
_SECRET_FIELD = re.compile(
    r"((api|access|auth|client)?[-_]?(key|token|secret|password))|auth\w*|sig\w*", re.IGNORECASE
)
_NAMED = re.compile(r"\$\{([A-Za-z_]\w*)\}")
_FROM_ENVIRONMENT = re.compile(r"([A-Za-z][\w-]*[ =])?\$\{[A-Za-z_]\w*\}")  # as in: Bearer ${NAME}
_TYPES = {
    "json": "application/json",
    "png": "image/png",
    "jpeg": "image/jpeg",
    "npy": "application/octet-stream",
}

Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _known(cls, data: Any) -> Any:
        names = [field.alias or name for name, field in cls.model_fields.items()]
        for word in data if isinstance(data, Mapping) else ():
            if word not in names:
                raise ValueError(f"there is no setting {str(word)!r}; {suggest(str(word), names)}")
        return data


class Request(Settings):
    template: Any = Field(
        None, alias="json"
    )  # with $inputs (all rows), $input, or {$each: ... $input ...}
    inputs: Literal["lists", "png", "jpeg", "npy"] = (
        "lists"  # how a row is written there; files in base64
    )
    body: Literal["png", "jpeg", "npy"] | None = (
        None  # instead of json: an image, or one array of all rows
    )

    @model_validator(mode="after")
    def _one_place(self) -> Request:
        if (self.template is None) == (self.body is None):
            raise ValueError(
                "give either json, a template that holds $inputs, or body: png, jpeg or npy"
            )
        texts = _texts(self.template)
        if self.body is None and sum(value in (ALL, ONE) for _, value in texts) != 1:
            raise ValueError(
                f"the json template must hold {ALL} or {ONE} exactly once, as a whole value"
            )
        try:
            json.dumps(self.template)
        except (TypeError, ValueError):
            raise ValueError("the json template holds a value that JSON has no form for") from None
        for name, value in texts:
            if _SECRET_FIELD.fullmatch(name) and value not in (ALL, ONE):
                raise ValueError(
                    f"the template has a text under {name!r}, which looks secret; put it into "
                    "headers"
                )
        return self

    @property
    def single(self) -> bool:
        """Whether a request can carry one row only."""
        if self.body:
            return self.body != "npy"
        text = json.dumps(self.template)
        return f'"{ALL}"' not in text and f'"{EACH}"' not in text

    @property
    def picture(self) -> bool:
        return (self.body or self.inputs) in ("png", "jpeg")


class Endpoint(Settings):
    url: str
    shape: tuple[Count, ...] = Field(min_length=1)  # of one input
    classes: Count | tuple[str, ...]  # how many, or their names in order
    gives: Literal["scores", "probabilities", "labels"]
    request: Request
    response: str = ""  # where the rows are in the answer: outputs.*.scores
    bounds: tuple[float, float] = (0.0, 1.0)
    layout: Literal["nchw", "nhwc"] = "nchw"  # of images
    headers: dict[str, str] = {}  # ${NAME} is a variable of the environment
    batch: Count = 1  # rows a request
    concurrency: Annotated[int, Field(ge=1, le=64)] = 1  # requests at a time
    rate: Above | None = None  # the most requests a second
    timeout: Above = 30.0  # seconds for a whole request
    retries: Annotated[int, Field(ge=0, le=100)] = 4
    # seconds before the first retry; then doubled
    backoff: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    max_queries: Count | None = (
        None  # the most inputs ever sent, retries counted; with cache_file, over all runs
    )
    cache: bool = (
        True  # ask no input twice; answers that change from one time to the next then go unseen
    )
    cache_file: Path | None = None  # keeps answers and the count for later runs; next to the config

    @field_validator("url")
    @classmethod
    def _checked_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or parts.port == 0
            or "$" in url
        ):
            raise ValueError("it must be a whole http:// or https:// address")
        if parts.username is not None or parts.password is not None:
            raise ValueError("it holds a user or password; put them into a header, as ${NAME}")
        hidden = [
            name
            for name, _ in parse_qsl(parts.query, keep_blank_values=True)
            if _SECRET_FIELD.fullmatch(name)
        ]
        if hidden:
            raise ValueError(
                f"its parameter {hidden[0]!r} looks secret; put it into a header, as ${{NAME}}"
            )
        return url

    @field_validator("headers")
    @classmethod
    def _no_secrets(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, value in headers.items():
            if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
                raise ValueError("a name of a header holds signs that none may hold")
            if (
                not _NAMED.sub("", value).isascii()
                or not value.isprintable()
                or value != value.strip()
            ):
                raise ValueError(
                    f"the value of {name} holds signs that no header may hold (a line break, or no "
                    "ASCII)"
                )
            if _SECRET.search(name) and not _FROM_ENVIRONMENT.fullmatch(value):
                raise ValueError(
                    f"{name} looks secret; write ${{NAME}} or Bearer ${{NAME}}, and set NAME "
                    "outside"
                )
        return headers

    @model_validator(mode="after")
    def _consistent(self) -> Endpoint:
        if self.k < 2 or (self.names and len(set(self.names)) < self.k):
            raise ValueError("classes must be a number from 2, or as many different names")
        if self.request.single and self.batch > 1:
            raise ValueError(
                f"batch is {self.batch}, but the request has place for one row; use {ALL} or {EACH}"
            )
        if self.cache_file and not self.cache:
            raise ValueError("cache_file is given, but cache is off; drop one of the two")
        if self.request.picture and not self._drawable():
            raise ValueError(
                f"inputs of shape {list(self.shape)} ({self.layout}) are no images of 1, 3 or 4 "
                "channels"
            )
        return self

    def _drawable(self) -> bool:
        if len(self.shape) != 3:
            return len(self.shape) == 2
        channels, jpeg = (
            self.shape[channel_axis(self.layout)],
            (self.request.body, self.request.inputs),
        )
        return channels in (1, 3) or (channels == 4 and "jpeg" not in jpeg)

    @property
    def names(self) -> tuple[str, ...]:
        return () if isinstance(self.classes, int) else self.classes

    @property
    def k(self) -> int:
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    @property
    def width(self) -> int:
        """Numbers in one row of an answer."""
        return {"labels": 1}.get(self.gives, self.k)

    def identity(self) -> str:
        """A SHA-256 of what decides the answers; how fast and how often they are asked for does
        not."""
        decides = {"url", "shape", "classes", "gives", "request", "response", "bounds", "layout"}
        said = self.model_dump(mode="json", include=decides, by_alias=True)
        said["headers"] = {
            name.lower(): value for name, value in self.headers.items() if "${" not in value
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def filled_headers(self) -> dict[str, str]:
        """The headers with the environment's values.

        Raises:
            InputError: names a variable that is missing or cannot be part of a header; never its
                value.
        """

        def value(header: str, name: str) -> str:
            found = os.environ.get(name, "")
            if (
                not found
                or not found.isascii()
                or not found.isprintable()
                or found != found.strip()
            ):
                state = "holds what no header may hold" if found else "is not set"
                raise InputError(
                    f"the header {header} needs the environment variable {name}, which {state}."
                )
            return found

        kind = {"Content-Type": _TYPES[self.request.body or "json"], "Accept": "application/json"}
        own = {
            name: _NAMED.sub(lambda m, name=name: value(name, m[1]), text)
            for name, text in self.headers.items()
        }
        return {
            name: text
            for name, text in kind.items()
            if name.lower() not in {o.lower() for o in own}
        } | own


def read(path: Path) -> Endpoint:
    """The settings in a file.

    Raises:
        InputError: missing, unreadable, or a setting is wrong; says which, never its value.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return Endpoint.model_validate(
            json.loads(text) if path.suffix.lower() == ".json" else read_yaml(text, path)
        )
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        said = str(first.get("ctx", {}).get("error", first["msg"]))
        place = ": ".join([str(path), *filter(None, [".".join(map(str, first["loc"]))])])
        raise InputError(f"{place}: {said}{'.' * (not said.endswith(('.', '?')))}") from None
    except ValueError as error:
        line = getattr(error, "lineno", None)
        raise InputError(
            f"{path} is no JSON text{f' (line {line})' if line else ''}; repair it."
        ) from None


def _texts(template: Any, name: str = "") -> list[tuple[str, str]]:
    """The texts of a template, each with its name."""
    if isinstance(template, dict):
        return [found for key, item in template.items() for found in _texts(item, str(key))]
    if isinstance(template, list):
        return [found for item in template for found in _texts(item, name)]
    return [(name, text) for text in (template,) if isinstance(text, str)]
