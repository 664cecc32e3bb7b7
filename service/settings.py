"""Everything an operator may turn, in one frozen object.

Values come, in rising order of strength, from the defaults below, from the variables that platforms set in the containers that
they start, from ``CAMSERVE_*`` environment variables and from the command line. Nothing else in the package reads the
environment.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from service.vocabulary import EngineOption, PrecisionOption, Protocol

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED_MODELS = _PACKAGE / "models"
# The cards that come with the service: an installation has them inside the package, a checkout beside it.
DEFAULT_MODELS_DIR = _INSTALLED_MODELS if _INSTALLED_MODELS.is_dir() else _PACKAGE.parent / "models"
# Where KServe, SageMaker and this project's compose file mount models.
MOUNTED_MODELS_DIRS = (Path("/mnt/models"), Path("/opt/ml/model"), Path("/models"))
# What platforms set in a container: Vertex AI, SageMaker, and Knative and Cloud Run (PORT). The first that is there counts.
PLATFORM_VARIABLES: Final[dict[str, tuple[str, ...]]] = {
    "port": ("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT"),
    "vertex_health_route": ("AIP_HEALTH_ROUTE",),
    "vertex_predict_route": ("AIP_PREDICT_ROUTE",),
}


def _split(value: object) -> object:
    """``"a, b"`` -> ``("a", "b")``: lists are written with commas, in the environment as on the command line."""
    parts = [value] if isinstance(value, str) else value
    if isinstance(parts, (list, tuple)) and all(isinstance(part, str) for part in parts):
        return tuple(name.strip() for part in parts for name in part.split(",") if name.strip())
    return value


def _known_protocols(names: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := set(names) - set(get_args(Protocol)):
        raise ValueError(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(get_args(Protocol))}")
    return names


def find_models_dir() -> Path:
    """The folder of models where none is named: the first that a platform has mounted and filled, else the service's own."""
    for folder in MOUNTED_MODELS_DIRS:
        try:
            if any(folder.iterdir()):
                return folder
        except OSError:
            continue
    return DEFAULT_MODELS_DIR


def _default_cache_dir() -> Path | None:
    """The user's cache folder (XDG base directories); None for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification has others ignored
        return Path(base) / "camserve"
    try:
        return Path.home() / ".cache" / "camserve"
    except RuntimeError:
        return None


def _folder_or_none(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in {"", "none", "off"} else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Route = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._~:@-]+)+$", max_length=256)]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """The service's settings; see docs/settings.md."""

    model_config = SettingsConfigDict(env_prefix="CAMSERVE_", frozen=True, extra="forbid", env_ignore_empty=True)

    models: Names = Field(
        ("efficientnet_lite0",),
        description="Models to load at start: cards, or references such as timm/resnet50.a1_in1k; the first is the default.",
    )
    models_dir: Path = Field(
        default_factory=find_models_dir, description="Folder of model cards (*.toml) and of folders with a model each."
    )
    device: str = Field(
        "auto", description="auto (cuda when there is one), cpu, cuda or cuda:N.", pattern=r"^(auto|cpu|cuda(:\d+)?)$"
    )
    engine: EngineOption = Field(
        "auto", description="What runs the network up to the card's layer; auto is openvino on the CPU where it is installed."
    )
    precision: PrecisionOption = Field(
        "auto", description="Its arithmetic; auto is bf16 where the hardware has it, answers stay the same and it is faster."
    )
    random_weights: bool = Field(
        default=False, description="Seeded random weights for every card whose weights live in a hub: benchmarks and tests."
    )

    cache_dir: Annotated[Path | None, BeforeValidator(_folder_or_none)] = Field(
        default_factory=_default_cache_dir,
        description="Folder of exported and compiled networks, from which the next start is faster (default: camserve in the "
        "user's cache folder); it may be deleted at any time. none turns it off.",
    )

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    shutdown_delay_s: float = Field(
        1.0, ge=0, le=60, description="After SIGTERM: seconds to go on serving, not ready, until balancers have seen it."
    )

    max_batch_size: int = Field(8, ge=1, le=256, description="Most images in one pass through a network.")
    max_queue_delay_ms: float = Field(
        0.0, ge=0, le=1000, description="Longest wait of a batch that is not full; 0 dispatches at once."
    )
    max_queue_size: int = Field(256, ge=1, le=100_000, description="Images waiting per model before 429.")
    request_timeout_s: float = Field(10.0, gt=0, le=3600, description="A request older than this is answered 504.")

    replicas: int = Field(
        1,
        ge=1,
        le=64,
        description="Batches of one model that run at once, each with its share of the cores. For machines with more cores "
        "than one batch keeps busy; a lone request is slower.",
    )
    cache_entries: int = Field(
        1024, ge=0, le=1_000_000, description="Raw maps of so many images cached per model; 0 turns the cache off."
    )
    cache_bytes: int = Field(64 * 1024 * 1024, ge=0, description="Most memory of the cache, per model.")

    max_body_bytes: int = Field(10 * 1024 * 1024, ge=1024, description="Largest request body.")
    max_image_pixels: int = Field(50_000_000, ge=64, description="Most pixels of one image.")
    max_images_per_request: int = Field(16, ge=1, le=256)
    max_classes_per_image: int = Field(16, ge=1, le=1000)

    threads: int = Field(
        0, ge=0, le=1024, description="Cores to share between network and codecs; 0 takes what the process may use."
    )
    api_keys: Secrets = Field((), description="Accepted API keys; empty leaves the service open.")
    admin_keys: Secrets = Field((), description="Keys that may load and unload models; empty leaves that off.")
    log_format: Literal["auto", "json", "console"] = Field("auto", description="auto is console on a terminal, else json.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    protocols: Annotated[Names, AfterValidator(_known_protocols)] = Field(
        get_args(Protocol), description="Whose requests are answered; the routes of the others are not there."
    )
    model_name: str | None = Field(
        None,
        pattern=r"^[a-z0-9._-]{1,253}$",
        description="Another name of the first model, such as its InferenceService's, for the protocols of other servers.",
    )
    vertex_health_route: Route | None = Field(None, description="Address that Vertex AI probes; AIP_HEALTH_ROUTE.")
    vertex_predict_route: Route | None = Field(
        None, description="Address that Vertex AI sends instances to; AIP_PREDICT_ROUTE."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where values come from, the strongest first."""
        return init_settings, env_settings, _PlatformEnvironment(settings_cls)

    @field_validator("port", mode="before")
    @classmethod
    def _ignore_service_link(cls, value: object) -> object:
        """Kubernetes sets CAMSERVE_PORT=tcp://10.0.0.1:8000 in every pod beside a Service named camserve; that is no port."""
        return cls.model_fields["port"].default if isinstance(value, str) and value.startswith("tcp://") else value

    @property
    def cores(self) -> int:
        """Cores this process may use."""
        return self.threads or _available_cores()

    @property
    def engine_threads(self) -> int:
        """Threads of one network operation on the CPU."""
        return max(1, self.cores // self.replicas)

    @property
    def codec_threads(self) -> int:
        """Threads that decode and encode images."""
        return max(2, self.cores // 2)

    @model_validator(mode="after")
    def _a_request_fits_the_queue(self) -> Self:
        if self.max_images_per_request > self.max_queue_size:
            raise ValueError("max_images_per_request: more than max_queue_size, so a full request could never be answered")
        return self

    @model_validator(mode="after")
    def _models_named_once(self) -> Self:
        if not self.models:
            raise ValueError("models: name at least one card")
        if len(set(self.models)) != len(self.models):
            raise ValueError(f"models: each card once, got {', '.join(self.models)}")
        return self


class _PlatformEnvironment(PydanticBaseSettingsSource):
    """The variables that platforms set; an empty one counts as not set."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """The value of a field, None where no platform sets one, with the field's name; never JSON."""
        names = PLATFORM_VARIABLES.get(field_name, ())
        return next((value for name in names if (value := os.environ.get(name))), None), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Every field that a platform sets."""
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: value for name, value in found.items() if value is not None}


def variable_of(field: str) -> str:
    """The environment variable that a field's value comes from, or would come from if any were set."""
    own = f"{Settings.model_config['env_prefix']}{field}".upper()
    if os.environ.get(own):
        return own
    return next((name for name in PLATFORM_VARIABLES.get(field, ()) if os.environ.get(name)), own)


def tracing_requested() -> bool:
    """Whether OpenTelemetry's own environment variables name an endpoint for traces, and do not turn the SDK off."""
    endpoints = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true" and any(os.environ.get(name) for name in endpoints)


def _available_cores() -> int:
    """Cores that the scheduler lets this process use, no more than a container's quota (cgroup v2) pays for."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))
