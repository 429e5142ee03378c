"""All settings, in one class: ``TIMESTEP_*`` variables, every field documented.

Nothing else in the project reads the environment. Child processes get theirs from
:meth:`Settings.environment`, so that a service and its flow runs agree on every value.
"""

import ipaddress
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Annotated

import platformdirs
from pydantic import AliasChoices, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from timestep import cores


class Settings(BaseSettings):
    """Settings of one Timestep home; see each field. Unknown ``TIMESTEP_*`` variables are ignored."""

    model_config = SettingsConfigDict(env_prefix="TIMESTEP_", extra="ignore", populate_by_name=True)

    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("timestep", appauthor=False),
        description="Folder that holds everything: databases, storage, toolchain, logs.",
    )
    host: str = Field("127.0.0.1", description="Address of the HTTP server; any but loopback needs an API key.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the Timestep HTTP server.")
    api_url: str | None = Field(
        None,
        description="URL at which the service's own parts reach its HTTP server, where host and port don't say it.",
    )
    prefect_port: int = Field(4200, ge=1, le=65535, description="Port of the Prefect server and its UI.")
    model_host: str = Field(
        "127.0.0.1", description="Address of the model server; on any but loopback it asks for the service key."
    )
    model_port: int = Field(0, ge=0, le=65535, description="Port of the model server; 0 picks a free one.")
    database_url: str | None = Field(
        None,
        validation_alias=AliasChoices("TIMESTEP_DATABASE_URL", "TIMESTEP_DB_URL", "database_url"),
        description="PostgreSQL server to use instead of the embedded one; its databases 'prefect' and "
        "'timestep' are used and created when missing.",
    )
    database_password: SecretStr | None = Field(
        None, description="Password of the embedded PostgreSQL where it is served to other machines."
    )
    storage_url: str | None = Field(
        None, description="Object storage: local:///path, s3://bucket/prefix?endpoint=…, gs://…, azure://…."
    )
    agents: Annotated[list[Path], NoDecode] = Field(
        default_factory=list, description=f"Python files whose agents are registered, separated by '{os.pathsep}'."
    )
    model: str = Field(
        "smollm2-135m-instruct", description="Base model of agents that name none: a built-in name, a GGUF path or URL."
    )
    context_length: int = Field(4096, ge=128, description="Context of the served model, in tokens.")
    threads: int = Field(0, ge=0, description="Threads for llama.cpp; 0 means the cores that there are.")
    work_pool: str = Field("timestep", description="Prefect work pool of the service.")
    training_pool: str | None = Field(
        None,
        description="Prefect work pool of training runs; default: the service's, where they run as all others do.",
    )
    warm: bool = Field(
        True,
        description="Whether warm workers take the runs of the service's pool; else each run of a Kubernetes pool "
        "gets a pod of its own.",
    )
    worker_limit: int = Field(
        8, ge=3, description="Flow runs the worker executes at the same time; two may be batches, which wait for steps."
    )
    crash_limit: int = Field(
        5, ge=1, description="Crashes in a row, without a finished model or tool call in between, that end a flow run."
    )
    crash_grace: float = Field(
        1.0,
        ge=0,
        description="Seconds from a crash to the new start, doubled with each further one; at least 5 for runs of "
        "workers that are not ours.",
    )
    toolchain: Path | None = Field(None, description="Folder of the built llama.cpp tools; default: under the home.")
    toolchain_source: str = Field(
        "sdist", description="Where llama.cpp comes from: 'sdist', 'path' (binaries on PATH), or 'git:TAG'."
    )
    embedding_model: str = Field(
        "wordllama-256", description="Model of embeddings that name none: a built-in name, a GGUF path or URL."
    )
    queue_limit: int = Field(
        64,
        ge=1,
        description="Requests that may wait for the model server; more are told to come back. Steps always wait.",
    )
    service_key: SecretStr | None = Field(
        None, description="Key by which the service's own parts ask its HTTP API; made by the service."
    )
    first_api_key: SecretStr | None = Field(
        None, description="API key for all doors that the migration takes in once, for a service without any."
    )
    max_body_bytes: int = Field(
        32 << 20, ge=1, description="Largest body of a request; files have a limit of their own."
    )
    max_file_bytes: int = Field(0, ge=0, description="Largest body that carries a file or a part of one; 0: any size.")
    request_timeout: float = Field(
        60.0,
        gt=0,
        description="Seconds without a byte of a request's body, or until its answer begins; models may take longer.",
    )
    requests_per_minute: int = Field(
        0,
        ge=0,
        description="Requests of an API key in a minute, where the key has no number of its own; 0: any number.",
    )
    origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="Web sites whose pages may ask the HTTP API, such as 'https://chat.example', separated by commas.",
    )
    prefect_host: str = Field(
        "127.0.0.1",
        description="Address of the Prefect server and its UI. Without prefect_auth it asks for no key: whoever "
        "reaches it starts any run.",
    )
    prefect_api_url: str | None = Field(None, description="Prefect API, where it is not the service's own.")
    prefect_auth: SecretStr | None = Field(
        None, description="'user:password' that the Prefect API and its UI ask for, and that the service answers with."
    )
    prefect_ui_url: str | None = Field(
        None, description="Address at which people reach the Prefect UI, for links; default: that of the Prefect API."
    )
    model_server_url: str | None = Field(None, description="Model server, set by the service for its flow runs.")
    providers: SecretStr = Field(
        SecretStr(""),
        description="OpenAI-compatible servers by the prefix of their models: 'lab=http://127.0.0.1:8080/v1,…', "
        'or JSON: {"lab": {"base_url": "http://127.0.0.1:8080/v1", "api_key": "…"}}.',
    )
    ollama_host: str | None = Field(
        None,
        validation_alias=AliasChoices("TIMESTEP_OLLAMA_HOST", "OLLAMA_HOST", "ollama_host"),
        description="Ollama server of models named ollama/NAME; default: http://127.0.0.1:11434.",
    )
    ollama_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("TIMESTEP_OLLAMA_API_KEY", "OLLAMA_API_KEY", "ollama_api_key"),
        description="Key to Ollama's cloud, which then answers for ollama/NAME-cloud, and for every ollama/NAME "
        "where no Ollama host is named.",
    )

    @field_validator("agents", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        return (
            [part.strip().rstrip("/") for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("providers", mode="before")
    @classmethod
    def _providers_as_text(cls, value: object) -> object:
        # Kept as the secret text that it is in the environment: no error and no log quotes the keys in it.
        return json.dumps(value) if isinstance(value, dict) else value

    @field_validator("home", "toolchain")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @field_validator("model")
    @classmethod
    def _absolute_file(cls, value: str) -> str:
        is_path = value.endswith(".gguf") and "://" not in value
        # Not Path.expanduser, which raises where there is no such user.
        return str(Path(os.path.expanduser(value)).absolute()) if is_path else value  # noqa: PTH111

    @cached_property
    def storage(self) -> str:
        """URL of the object store: ``storage_url`` or the folder under the home."""
        return self.storage_url or f"local://{(self.home / 'storage').as_posix()}"

    @cached_property
    def toolchain_dir(self) -> Path:
        """Folder of the built llama.cpp tools."""
        return self.toolchain or self.home / "toolchain"

    @cached_property
    def cache_dir(self) -> Path:
        """Folder for what can be fetched again: model files taken out of storage."""
        return self.home / "cache"

    @cached_property
    def run_dir(self) -> Path:
        """Folder of the running service's lock and state."""
        return self.home / "run"

    @cached_property
    def log_dir(self) -> Path:
        """Folder of the services' logs."""
        return self.home / "logs"

    @cached_property
    def cores(self) -> int:
        """Threads llama.cpp may use; more than there are cores makes it far slower."""
        return self.threads or cores.available()

    @cached_property
    def prefect_api(self) -> str:
        """URL of the Prefect API."""
        return self.prefect_api_url or f"http://127.0.0.1:{self.prefect_port}/api"

    @cached_property
    def prefect_login(self) -> str | None:
        """What a client of the Prefect API says who it is by: 'user:password', where that is asked for."""
        return (self.prefect_auth.get_secret_value() or None) if self.prefect_auth is not None else None

    @cached_property
    def prefect_ui(self) -> str:
        """URL of the Prefect UI, for people."""
        return (self.prefect_ui_url or self.prefect_api.removesuffix("/api")).rstrip("/")

    @cached_property
    def api(self) -> str:
        """URL of the service's HTTP API, as its own parts reach it."""
        return self.api_url.rstrip("/") if self.api_url else self.address

    @cached_property
    def address(self) -> str:
        """URL at which this machine reaches the HTTP server that these settings start."""
        everywhere = self.host in ("0.0.0.0", "::", "")
        host = "127.0.0.1" if everywhere else f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @cached_property
    def is_private(self) -> bool:
        """Whether only this machine reaches the HTTP server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def environment(self) -> dict[str, str]:
        """The ``TIMESTEP_*`` variables that make a child process load equal settings."""
        values = self.model_dump(mode="json", exclude_none=True)
        values["agents"] = os.pathsep.join(str(path.absolute()) for path in self.agents)
        values["origins"] = ",".join(self.origins)
        secrets = {name: value for name, value in self if isinstance(value, SecretStr)}
        values |= {name: value.get_secret_value() for name, value in secrets.items()}
        return {f"TIMESTEP_{name.upper()}": str(value) for name, value in values.items()}


def load_settings(**overrides: object) -> Settings:
    """Settings from the environment, overridden by the arguments that are not None."""
    return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
