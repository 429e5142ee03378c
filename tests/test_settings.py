"""Where the service's parts find each other, by the settings alone."""

import pytest

from timestep.settings import Settings


@pytest.mark.parametrize(
    ("host", "api_url", "address", "api"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("0.0.0.0", "", "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("::1", None, "http://[::1]:8000", "http://[::1]:8000"),
        ("0.0.0.0", "https://timestep.example.org/", "http://127.0.0.1:8000", "https://timestep.example.org"),
    ],
)
def test_the_api_is_where_it_is_said_to_be_else_where_this_machine_listens(
    host: str, api_url: str | None, address: str, api: str
) -> None:
    settings = Settings(host=host, port=8000, api_url=api_url)
    assert (settings.address, settings.api) == (address, api)
