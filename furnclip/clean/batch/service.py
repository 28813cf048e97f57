"""The client of OpenAI's Files and Batches: the one place that calls them.

Creating a batch is never retried here: the service has no idempotency, so a lost reply is an `UnsureError`
and `dispatch` looks before it asks again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch

from furnclip.config import Config
from furnclip.console import redact
from furnclip.errors import ServiceError

OFFICIAL_URL = "https://api.openai.com/v1"
TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
_UPLOAD_TIMEOUT_S = 900


class OutageError(ServiceError):
    """The service cannot be reached or is out of order; it may pass by itself."""


class UnsureError(Exception):
    """The reply was lost: the service may or may not have done what was asked."""


@dataclass(eq=False)
class RefusedError(Exception):
    """The service said no; nothing was created."""

    status: int
    code: str
    message: str

    @classmethod
    def from_error(cls, error: openai.APIStatusError) -> RefusedError:
        message = error.message.removeprefix(f"Error code: {error.status_code} - ")
        return cls(error.status_code, str(error.code or ""), redact(message))

    def as_service_error(self) -> ServiceError:
        said = f"the service refused (HTTP {self.status} {self.code}): {self.message}"
        hint = "fix the cause and run the same command again; nothing is lost"
        return self.account_problem() or ServiceError(said, hint=hint)

    def account_problem(self) -> ServiceError | None:
        """What the user has to fix before anything can be sent, or None when it is about one request."""
        if self.status == 401:
            return ServiceError("the service refused the API key", hint="check OPENAI_API_KEY")
        if self.code == "insufficient_quota":
            return ServiceError(
                "the account has no credit left, or reached its spending limit",
                hint="add credit, then run the same command again; nothing is lost or sent twice",
            )
        if self.status == 403:
            return ServiceError(
                f"the API key may not do this: {self.message}",
                hint="give the key the permissions for files, batches and models",
            )
        return None


def counts_of(batch: Batch) -> tuple[int, int, int]:
    """Requests of a batch: total, completed, failed; 0 where the service does not say."""
    counts = batch.request_counts
    return (counts.total, counts.completed, counts.failed) if counts else (0, 0, 0)


class BatchService:
    """Files, batches, models and single requests of one account."""

    def __init__(self, config: Config) -> None:
        key = config.openai_api_key.get_secret_value()
        self._url = config.clean.base_url or OFFICIAL_URL
        self._client = openai.OpenAI(api_key=key, base_url=self._url, timeout=config.clean.timeout_s)
        self._once = self._client.with_options(max_retries=0)

    def close(self) -> None:
        self._client.close()

    def shutdown_date(self, model: str) -> date | None:
        """The day the provider switches the model off, when it has said so."""
        try:
            with self._explained(404):
                found = self._client.models.retrieve(model)
        except RefusedError as error:
            if error.code != "model_not_found" and self._url != OFFICIAL_URL:
                raise ServiceError(
                    f"`{self._url}` does not answer as the OpenAI API does (HTTP 404 for a model)",
                    hint="correct `clean.base_url`: it usually ends in /v1",
                ) from None
            raise ServiceError(
                f"the service does not offer the model `{model}` to this key",
                hint="set `clean.model` in furnclip.toml to one it offers",
            ) from None
        text = found.model_dump().get("shutdown_date")
        return date.fromisoformat(text) if isinstance(text, str) and text else None

    def ask(self, endpoint: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """One synchronous request; its reply. Raises `RefusedError` for a definite no, else `UnsureError`."""
        with _sure():
            reply = self._once.post(endpoint.removeprefix("/v1"), body=dict(body), cast_to=object)
        if not isinstance(reply, dict):
            raise UnsureError
        return reply

    def upload(self, path: Path, filename: str) -> str:
        client = self._client.with_options(timeout=_UPLOAD_TIMEOUT_S)
        with self._explained(), path.open("rb") as file:
            return client.files.create(file=(filename, file), purpose="batch").id

    def find_upload(self, filename: str, size_bytes: int) -> str | None:
        """A file that was uploaded before a crash could note its id."""
        with self._explained():
            for file in self._client.files.list(purpose="batch", limit=1000, order="desc"):
                if file.filename == filename and file.bytes == size_bytes:
                    return file.id
        return None

    def create(self, file_id: str, endpoint: str, metadata: Mapping[str, str]) -> Batch:
        """A new batch. Raises `RefusedError` for a definite no and `UnsureError` for anything else."""
        with _sure():
            return self._once.batches.create(
                input_file_id=file_id,
                endpoint=endpoint,  # type: ignore[arg-type]
                completion_window="24h",
                metadata=dict(metadata),
            )

    def list_batches(self) -> list[Batch]:
        """Every batch of the project, of any age: clocks differ."""
        with self._explained():
            return list(self._client.batches.list(limit=100))

    def get(self, batch_id: str) -> Batch:
        try:
            with self._explained(404):
                return self._client.batches.retrieve(batch_id)
        except RefusedError:
            raise ServiceError(
                f"the service does not know the batch `{batch_id}`",
                hint="use the API key of the organization and project that it was sent with; "
                "nothing was sent again",
            ) from None

    def cancel(self, batch_id: str) -> Batch:
        """Ask for a stop; a batch that has ended already stays as it is."""
        try:
            with self._explained(409):
                return self._once.batches.cancel(batch_id)
        except RefusedError:
            return self.get(batch_id)

    def download(self, file_id: str) -> bytes | None:
        """A result file, about 15 MB; None when the service does not have it any more.

        Raises `OutageError` where it does not arrive whole: the service keeps it for 30 days.
        """
        try:
            with self._explained(404):
                expected_bytes = self._client.files.retrieve(file_id).bytes
                content = self._client.files.content(file_id).content
        except RefusedError:
            return None
        try:
            json.loads(content.rsplit(b"\n", 1)[-1] or b"{}")  # the last line may be cut
            is_whole = len(content) == (expected_bytes or len(content))
        except ValueError:
            is_whole = False
        if not is_whole:
            said = f"the result file `{file_id}` does not arrive whole"
            raise OutageError(said, hint="run the same command again later; nothing is lost")
        return content

    @contextmanager
    def _explained(self, *expected: int) -> Iterator[None]:
        """Every failure as a `ServiceError`, but refusals with an expected HTTP status as `RefusedError`."""
        try:
            yield
        except openai.APIStatusError as error:
            if error.status_code >= 500:
                raise OutageError(
                    f"the service at `{self._url}` answers with HTTP {error.status_code}",
                    hint="run the same command again later; nothing is lost",
                ) from None
            refused = RefusedError.from_error(error)
            raise (refused if refused.status in expected else refused.as_service_error()) from None
        except openai.APIConnectionError as error:
            raise OutageError(
                f"the service at `{self._url}` cannot be reached ({error.__cause__ or error})",
                hint="check the connection and `clean.base_url`, then run the same command again",
            ) from None
        except (OSError, ValueError) as error:
            raise OutageError(
                f"the answer of `{self._url}` cannot be read ({error})", hint="run the same command again"
            ) from None


@contextmanager
def _sure() -> Iterator[None]:
    """A call that costs money: `RefusedError` when it surely did nothing, `UnsureError` when it may have."""
    try:
        yield
    except openai.APIStatusError as error:
        if error.status_code < 500 and error.status_code != 408:
            raise RefusedError.from_error(error) from None
        raise UnsureError from None
    except (openai.APIConnectionError, openai.APIResponseValidationError, ValueError):
        raise UnsureError from None
