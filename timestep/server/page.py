"""Pages for people: / and /docs. Plain files that fetch nothing from elsewhere; what they show, they ask of the API."""

from functools import cache
from html import escape
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, HTMLResponse

from timestep.errors import NotFoundError
from timestep.settings import Settings

router = APIRouter(include_in_schema=False)

HERE = Path(__file__).with_name("static")
OWN = ("page.css", "page.js", "docs.js")
SWAGGER = ("swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png")
# Nothing from elsewhere, no page of others around ours. Swagger UI writes styles into its elements.
POLICY = "default-src 'none'; script-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
PAGE_POLICY = f"{POLICY}; style-src 'self'; img-src data:; form-action 'none'"
DOCS_POLICY = f"{POLICY}; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


@router.get("/")
async def index(request: Request) -> HTMLResponse:
    """What is running, and a chat."""
    settings: Settings = request.app.state.settings
    shown = escape(settings.prefect_ui)
    text = (HERE / "page.html").read_text(encoding="utf-8").replace("{prefect_ui}", shown)
    return HTMLResponse(text, headers={**_HEADERS, "content-security-policy": PAGE_POLICY})


@router.get("/docs")
async def docs() -> HTMLResponse:
    """The API's document, to read and to try."""
    text = (HERE / "docs.html").read_text(encoding="utf-8")
    return HTMLResponse(text, headers={**_HEADERS, "content-security-policy": DOCS_POLICY})


@router.get("/static/{name}")
async def static(name: str) -> FileResponse:
    """A file of these pages: one of those that are named here, whatever else lies beside it."""
    files = _files()
    if name not in files:
        raise NotFoundError("file", name)
    return FileResponse(files[name], headers=_HEADERS)


@cache
def _files() -> dict[str, Path]:
    from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

    return {**{name: HERE / name for name in OWN}, **{name: Path(swagger_ui_path) / name for name in SWAGGER}}
